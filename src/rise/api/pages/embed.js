// Adds the chat to any page, as a bubble in its corner:
//   <script src="https://your.server/webchat/embed.js" data-title="Ask us" async></script>
"use strict";

(() => {
  const script = document.currentScript;
  const chat = new URL("../webchat", script.src);
  if (script.dataset.title) chat.searchParams.set("title", script.dataset.title);

  const frame = document.createElement("iframe");
  frame.title = script.dataset.title || "Chat";
  Object.assign(frame.style, {
    position: "fixed", right: "16px", bottom: "84px", width: "min(400px, calc(100vw - 32px))",
    height: "min(600px, calc(100dvh - 110px))", border: "0", borderRadius: "16px", colorScheme: "auto",
    boxShadow: "0 8px 40px rgb(0 0 0 / .25)", zIndex: "2147483000", display: "none",
  });

  const bubble = document.createElement("button");
  bubble.type = "button";
  bubble.append(icon());
  Object.assign(bubble.style, {
    position: "fixed", right: "16px", bottom: "16px", width: "56px", height: "56px", border: "0",
    borderRadius: "50%", background: "#3450c8", color: "#fff", padding: "14px", cursor: "pointer",
    boxShadow: "0 4px 16px rgb(0 0 0 / .3)", zIndex: "2147483000",
  });

  function icon() {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    svg.setAttribute("viewBox", "0 0 24 24");
    svg.setAttribute("aria-hidden", "true");
    path.setAttribute("d", "M4 3h16a2 2 0 0 1 2 2v10a2 2 0 0 1-2 2H9l-5 4.5V17a2 2 0 0 1-2-2V5a2 2 0 0 1 2-2z");
    path.setAttribute("fill", "currentColor");
    svg.append(path);
    return svg;
  }

  function show(open) {
    if (open && !frame.src) frame.src = chat.href; // nothing is loaded before somebody asks
    frame.style.display = open ? "block" : "none";
    bubble.setAttribute("aria-expanded", String(open));
    bubble.setAttribute("aria-label", open ? "Close the chat" : "Open the chat");
  }

  bubble.addEventListener("click", () => show(frame.style.display === "none"));
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(false);
  });
  show(false);
  document.body.append(frame, bubble);
})();
