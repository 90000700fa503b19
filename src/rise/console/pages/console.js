// What all pages share: times that go on while one looks at them.

const STEPS = [
  [60, 1, "s"],
  [3600, 60, "min"],
  [86_400, 3600, "h"],
  [Infinity, 86_400, "d"],
];

export function lasting(seconds) {
  const [, unit, name] = STEPS.find(([below]) => seconds < below);
  const amount = seconds / unit;
  return `${unit >= 3600 && amount < 10 ? amount.toFixed(1) : Math.round(amount)} ${name}`;
}

// Between this clock and the server's, which wrote all times: the page says when it was made.
let ahead = 0;

export function follow(serverNow) {
  ahead = Date.now() - serverNow;
}

export function tick() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const seconds = (Date.now() - ahead - Date.parse(time.dateTime)) / 1000;
    if (Number.isNaN(seconds)) continue;
    if (time.dataset.kind === "since") {
      time.textContent = `for ${lasting(Math.max(0, seconds))}`;
      continue;
    }
    const words = Math.abs(seconds) < 1 ? "just now" : seconds > 0 ? `${lasting(seconds)} ago` : `in ${lasting(-seconds)}`;
    if (time.textContent !== words) time.textContent = words;
  }
}

document.querySelector("nav [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });

const made = Number(document.body.dataset.now);
if (made) follow(made);
setInterval(tick, 1000);
