// Live: figures, plots, and the parts of the page that change, as the server sends them.
import { follow, lasting, tick } from "./console.js";

const WIDTH = 300;
const HEIGHT = 60;
const SPAN_MS = 300_000;
const PARTS = ["standing", "lights", "alerts", "counted"];

const plots = document.getElementById("plots");
const live = document.getElementById("live");
let beats = [];

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const grouped = (count) => number.format(count).replaceAll(",", "\u202f");
const WRITTEN = {
  "per second": (value) => (value >= 100 ? grouped(value) : value.toFixed(1)),
  messages: grouped,
  "": lasting,
};

function draw() {
  const now = beats.at(-1)?.[0];
  for (const plot of plots.querySelectorAll(".plot")) drawOne(plot, Number(plot.dataset.column), now);
}

function drawOne(plot, column, now) {
  const known = beats.filter((beat) => beat[column] !== null && beat[0] > now - SPAN_MS);
  if (known.length === 0) return;
  const written = WRITTEN[plot.dataset.unit];
  const last = known.at(-1)[column];
  const most = Math.max(...known.map((beat) => beat[column]));
  // A line along the ground is nothing at all; the least that is drawn as much is one.
  const top = Math.max(most, 1) * 1.08;
  const points = known.map((beat) => [
    (WIDTH * (beat[0] - now + SPAN_MS)) / SPAN_MS,
    HEIGHT - 2 - ((HEIGHT - 4) * beat[column]) / top,
  ]);
  const line = points.map(([x, y], place) => `${place ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  plot.querySelector(".line").setAttribute("d", line);
  const [first] = points;
  plot.querySelector(".area").setAttribute("d", `${line}L${WIDTH} ${HEIGHT}L${first[0].toFixed(1)} ${HEIGHT}Z`);
  plot.querySelector(".figure b").textContent = written(last);
  plot.querySelector(".most").textContent = `at most ${written(most)}`;
  const unit = plot.dataset.unit && ` ${plot.dataset.unit}`;
  plot.querySelector("svg").setAttribute(
    "aria-label",
    `${plot.dataset.name}, the last five minutes: now ${written(last)}${unit}, at most ${written(most)}${unit}`,
  );
}

function say(words) {
  if (live.textContent !== words) live.textContent = words;
}

function take(fresh) {
  if (fresh.length === 0) return;
  beats = fresh.length > 1 ? fresh : [...beats, ...fresh].filter((beat) => beat[0] > fresh[0][0] - SPAN_MS);
  follow(fresh.at(-1)[0]);
  draw();
}

// Made on the server by the templates that escape everything.
function put(name, part) {
  const place = document.getElementById(name);
  if (place.contains(document.activeElement)) return; // nobody is thrown out of where he is; the next change comes
  place.innerHTML = part;
  if (name === "standing") document.title = `${place.querySelector("h1").textContent} · Rise`;
  if (name === "alerts") announce(place);
  tick();
}

// Which there are, when that changes; their words change with every count.
function announce(place) {
  const names = [...place.querySelectorAll(".head b")].map((name) => name.textContent).join(", ");
  const words = names ? `Alerts: ${names}` : "No alerts";
  const said = document.getElementById("alerts-said");
  if (said.textContent !== words) said.textContent = words;
}

function connect() {
  const stream = new EventSource(plots.dataset.events);
  stream.addEventListener("open", () => say("Live."));
  stream.addEventListener("beats", (event) => take(JSON.parse(event.data)));
  for (const name of PARTS) stream.addEventListener(name, (event) => put(name, event.data));
  stream.addEventListener("error", () => {
    say(stream.readyState === EventSource.CLOSED ? "Not live any more: load the page anew." : "Not connected; trying again…");
  });
  return stream;
}

let stream = document.hidden ? null : connect();

// A tab that nobody sees holds no connection, of which a browser has six, and has nothing counted for it.
document.addEventListener("visibilitychange", () => {
  stream?.close();
  stream = document.hidden ? null : connect();
});
