// Beside an editor: what is written there is tried in a chat, and is not left behind unsaved.

const editor = document.getElementById("editor");
const pane = document.getElementById("try");
const talk = document.getElementById("talk");
const say = document.getElementById("say");

// --- what is typed is not lost ---

const fields = editor ? [...editor.querySelectorAll("input:not([type=hidden]), textarea")] : [];
let left = false;

const isChanged = () => fields.some((field) => field.value !== field.defaultValue);

// Typed before, and brought back with what was said to it: that is not saved either.
const isUnsaved = editor?.hasAttribute("data-unsaved");

editor?.addEventListener("submit", () => {
  left = true;
});
addEventListener("beforeunload", (event) => {
  if (!left && (isChanged() || isUnsaved)) event.preventDefault();
});

document.querySelector("[aria-invalid]")?.focus();

// --- trying ---

const tried = editor ? [...editor.querySelectorAll("[data-tried]")] : [];
const note = document.getElementById("tried-with");
if (note && tried.length) note.textContent = "What is written beside is tried, saved or not.";

function put(part) {
  talk.innerHTML = part; // made on the server by the templates that escape everything
  talk.scrollTop = talk.scrollHeight;
}

function complain(words) {
  const problem = document.createElement("p");
  problem.className = "problem";
  problem.textContent = words;
  talk.append(problem);
  talk.scrollTop = talk.scrollHeight;
}

async function answer(submitter) {
  const body = new URLSearchParams(new FormData(pane, submitter));
  for (const field of tried) body.set(`draft_${field.dataset.tried}`, field.value);
  body.set("part", "yes");
  const response = await fetch(pane.action, { method: "POST", body });
  const words = await response.text();
  if (response.headers.get("x-part") !== "talk") {
    throw new Error(response.status === 401 || response.status === 403 ? "You are not signed in any more: load the page anew." : `It could not be tried (${response.status}).`);
  }
  put(words);
  return response.ok;
}

pane?.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (talk.ariaBusy === "true") return;
  talk.ariaBusy = "true";
  pane.classList.add("busy");
  try {
    if (await answer(event.submitter)) say.value = "";
  } catch (error) {
    complain(error instanceof TypeError ? "Rise does not answer." : error.message);
  } finally {
    talk.ariaBusy = "false";
    pane.classList.remove("busy");
    say.focus();
  }
});
