// A chat that loses nothing: what was written stays here until the server has it on disk, and what was
// answered is asked for from where this page left off.
"use strict";

const STORE = "rise.webchat";
const ENTRIES_MAX = 300;
const SILENCE_MS = 40_000; // the server is heard at least every 15 s
const DOTS_MS = 120_000;

const $ = (id) => document.getElementById(id);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// --- what is remembered -------------------------------------------------------------------------------------

let state = { token: null, after: 0, entries: [] };

function remembered() {
  try {
    const stored = JSON.parse(localStorage.getItem(STORE));
    return stored && Array.isArray(stored.entries) ? stored : null;
  } catch {
    return null; // storage is closed to us (a private window, a frame): the page then remembers until it is shut
  }
}

function remember() {
  state.entries = state.entries.slice(-ENTRIES_MAX);
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch {
    // as above
  }
}

// Another tab of the same chat may know of more.
function takeOver(stored) {
  if (!stored) return;
  if (stored.token !== state.token) {
    state = stored;
    return;
  }
  const known = new Map(state.entries.map((entry) => [entry.id, entry]));
  for (const entry of stored.entries) {
    const mine = known.get(entry.id);
    if (!mine) state.entries.push(entry);
    else if (mine.state === "waiting" && entry.state !== "waiting") Object.assign(mine, entry);
  }
  state.after = Math.max(state.after, stored.after);
}

// --- what is shown ------------------------------------------------------------------------------------------

const MARKS = {
  waiting: ["◷", "Not kept yet; it is sent again by itself"],
  kept: ["✓", "Kept"],
  refused: ["!", "Not sent"],
};

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function bubble(text) {
  const shown = element("div", "bubble");
  for (const part of text.split(/(https?:\/\/[^\s<>"]+)/)) {
    shown.append(/^https?:\/\//.test(part) ? link(part, part) : part);
  }
  return shown;
}

function link(url, text) {
  const shown = element("a", "", text);
  shown.href = url;
  shown.target = "_blank";
  shown.rel = "noopener noreferrer";
  return shown;
}

const isWebAddress = (url) => typeof url === "string" && /^https?:\/\//.test(url);

function entryElement(entry) {
  const item = element("li", `entry ${entry.from} ${entry.from === "me" ? entry.state : entry.kind}`);
  item.append(element("span", "unseen", entry.from === "me" ? "You:" : "Bot:"));
  if (entry.text) item.append(bubble(entry.text));
  if (entry.media && isWebAddress(entry.media.file)) {
    item.append(link(entry.media.file, entry.media.caption || entry.media.kind || "Attachment"));
  }
  if (entry.from === "me") {
    const [sign, meaning] = MARKS[entry.state];
    const mark = element("span", "mark", entry.state === "refused" ? `${meaning}: ${entry.error}` : sign);
    mark.title = meaning;
    mark.setAttribute("aria-label", meaning);
    mark.setAttribute("role", "img");
    item.append(mark);
  } else if (entry.buttons) {
    item.append(buttonsElement(entry.buttons));
  }
  return item;
}

function buttonsElement(rows) {
  const shown = element("div", "buttons");
  for (const button of rows.flat()) {
    if (isWebAddress(button.url)) {
      shown.append(link(button.url, button.text));
    } else if (button.data) {
      const tap = element("button", "", button.text);
      tap.type = "button";
      tap.addEventListener("click", () => say(button.text, button.data));
      shown.append(tap);
    }
  }
  return shown;
}

let typing = false;

// Somebody works on an answer: the server says so, or what was sent has not been settled for so long.
function isExpecting() {
  const recent = Date.now() - DOTS_MS;
  return typing || state.entries.some((one) => one.state === "kept" && !one.settled && one.at > recent);
}

const drawn = new Map(); // entry id → [what it was drawn from, its element]

function draw() {
  const list = $("entries");
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  let last = null;
  for (const entry of state.entries) {
    const source = JSON.stringify(entry);
    let [before, item] = drawn.get(entry.id) || [];
    if (before !== source) {
      const fresh = entryElement(entry);
      if (item) item.replaceWith(fresh);
      item = fresh;
      drawn.set(entry.id, [source, item]);
    }
    const place = last ? last.nextSibling : list.firstChild;
    if (item !== place) list.insertBefore(item, place);
    last = item;
  }
  while (last ? last.nextSibling : list.firstChild) (last ? last.nextSibling : list.firstChild).remove();
  $("empty").hidden = state.entries.length > 0;
  $("typing").hidden = !isExpecting();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function showConnected(connected) {
  $("status").textContent = connected ? "" : "reconnecting…";
  $("status").classList.toggle("away", !connected);
}

// --- the server ---------------------------------------------------------------------------------------------

let opening = null;

function session() {
  if (state.token) return Promise.resolve(state.token);
  opening ??= openSession().finally(() => (opening = null));
  return opening;
}

async function openSession() {
  const response = await fetch("webchat/session", { method: "POST", signal: AbortSignal.timeout(15_000) });
  if (!response.ok) throw new Error(`${response.status}`);
  state.token = (await response.json()).data.token;
  state.after = 0;
  remember();
  return state.token;
}

// The server no longer knows this session (its directory was replaced): go on in a new one.
function forgetSession(token) {
  if (state.token === token) {
    state.token = null;
    remember();
  }
}

function id() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function say(text, data) {
  const entry = { id: id(), from: "me", text, state: "waiting", at: Date.now() };
  if (data) entry.data = data;
  state.entries.push(entry);
  remember();
  draw();
  $("log").scrollTop = $("log").scrollHeight;
  sendWaiting();
}

let sending = false;

// One at a time, in order. Each is repeated, under the same id, until the server says that it is kept.
async function sendWaiting() {
  if (sending) return;
  sending = true;
  try {
    let failures = 0;
    for (;;) {
      const entry = state.entries.find((one) => one.from === "me" && one.state === "waiting");
      if (!entry) return;
      const wait = await send(entry).catch(() => 0.5 * 2 ** Math.min(failures, 5));
      remember();
      draw();
      failures = wait === null ? 0 : failures + 1;
      if (wait !== null) await pause(1000 * wait);
    }
  } finally {
    sending = false;
  }
}

// null: settled, one way or the other; otherwise the seconds to wait before it is tried again.
async function send(entry) {
  const token = await session();
  const response = await fetch("webchat/messages", {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
    body: JSON.stringify({ clientMessageId: entry.id, text: entry.text, ...(entry.data && { data: entry.data }) }),
    signal: AbortSignal.timeout(15_000),
  });
  if (response.ok) {
    entry.state = "kept";
    entry.taskId = (await response.json().catch(() => null))?.data?.taskId;
    entry.at = Date.now();
    return null;
  }
  if (response.status === 401) {
    forgetSession(token);
    return 1;
  }
  if (response.status >= 500 || response.status === 429 || response.status === 408) {
    return Number(response.headers.get("Retry-After")) || 2;
  }
  entry.state = "refused";
  const said = await response.json().catch(() => null);
  entry.error = said?.error?.message || said?.detail || "the server does not take it";
  return null;
}

async function listen() {
  let failures = 0;
  for (;;) {
    try {
      await follow(() => {
        failures = 0;
        showConnected(true);
        sendWaiting();
      });
    } catch {
      failures += 1;
    }
    typing = false;
    if (failures > 0) showConnected(false);
    draw();
    await pause(Math.min(500 * 2 ** failures, 10_000) * (0.75 + Math.random() / 2));
  }
}

// Read the stream to its end. EventSource would do, but cannot send the session in a header.
async function follow(connected) {
  const token = await session();
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), SILENCE_MS);
  try {
    const response = await fetch(`webchat/events?after=${state.after}`, {
      headers: { Authorization: `Bearer ${token}`, Accept: "text/event-stream" },
      cache: "no-store",
      signal: silence.signal,
    });
    if (response.status === 401) forgetSession(token);
    if (!response.ok) throw new Error(`${response.status}`);
    connected();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let unread = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      const blocks = (unread + value).split("\n\n");
      unread = blocks.pop();
      blocks.forEach(takeEvent);
    }
  } finally {
    clearTimeout(timer);
  }
}

function takeEvent(block) {
  const fields = Object.fromEntries(
    block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]),
  );
  if (fields.event === "typing") {
    typing = JSON.parse(fields.data).on;
    if (!typing) settle();
  } else if (fields.event === "reply") {
    takeReply(JSON.parse(fields.data));
  }
  remember();
  draw();
}

function takeReply(reply) {
  state.after = Math.max(state.after, reply.sequence);
  const entryId = `r${reply.sequence}`;
  if (state.entries.some((entry) => entry.id === entryId)) return;
  const { text, buttons, media, kind } = reply;
  state.entries.push({ id: entryId, from: "bot", text, buttons, media, kind, at: Date.now() });
  if (kind === "answer") settle(reply.taskId);
}

// The answer has come, or the run ended without one: nothing is being written any more.
function settle(taskId) {
  for (const entry of state.entries) {
    if (entry.from === "me" && entry.state === "kept" && (!taskId || entry.taskId === taskId)) entry.settled = true;
  }
}

// --- the page -----------------------------------------------------------------------------------------------

function fit() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
}

function start() {
  const title = new URLSearchParams(location.search).get("title");
  if (title) $("title").textContent = document.title = title.slice(0, 60);
  takeOver(remembered());
  draw();
  $("log").scrollTop = $("log").scrollHeight;
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("text").value;
    if (!text.trim()) return;
    $("text").value = "";
    fit();
    say(text);
  });
  $("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("form").requestSubmit();
    }
  });
  $("text").addEventListener("input", fit);
  addEventListener("storage", (event) => {
    if (event.key === STORE) {
      takeOver(remembered());
      draw();
    }
  });
  addEventListener("online", sendWaiting);
  setInterval(draw, 5000); // dots do not stay for ever
  sendWaiting();
  listen();
}

start();
