// What needs a script by its nature: copying, the reader's own time zone, a pause of the updates.
// Without one the buttons for it stay hidden, and everything else works as it does.
(() => {
  "use strict";
  const LOCAL = "evosaga-local-time";
  let local = false;
  try {
    local = localStorage.getItem(LOCAL) === "1";
  } catch {
    // Storage may be forbidden; the choice then lasts as long as the page.
  }

  const two = (number) => String(number).padStart(2, "0");
  const time = (at) => `${two(at.getHours())}:${two(at.getMinutes())}`;
  const day = (at) => at.toLocaleDateString("en", { month: "short", day: "numeric" });
  const FORMATS = {
    "": (at) => `${day(at)} ${time(at)}:${two(at.getSeconds())}`,
    precise: (at) => `${time(at)}:${two(at.getSeconds())}.${String(at.getMilliseconds()).padStart(3, "0")}`,
    minute: time,
    day: (at) => `${at.toLocaleDateString("en", { weekday: "short" })} ${time(at)}`,
  };

  // The zone by its distance from UTC, as names of zones mean nothing to many.
  function zone() {
    const minutes = -new Date().getTimezoneOffset();
    const sign = minutes < 0 ? "\u2212" : "+";
    const size = Math.abs(minutes);
    return `UTC${sign}${two(Math.floor(size / 60))}:${two(size % 60)}`;
  }
  window.evosagaClock = (at) => (local ? `${time(at)}:${two(at.getSeconds())} ${zone()}` : null);

  function showTimes() {
    for (const one of document.querySelectorAll("time[data-clock]")) {
      one.dataset.utc ??= one.textContent;
      const format = FORMATS[one.dataset.clock];
      one.textContent = local ? format(new Date(one.dateTime)) : one.dataset.utc;
    }
    const button = document.getElementById("local-time");
    button.textContent = local ? "Show UTC" : "Show local time";
    button.setAttribute("aria-pressed", String(local));
    document.getElementById("zone").textContent = local ? `Times are local: ${zone()}.` : "All times are UTC.";
  }

  function prepare() {
    for (const button of document.querySelectorAll("button.copy[hidden]")) {
      button.hidden = !navigator.clipboard;
    }
    const title = document.querySelector("[data-title]");
    if (title) document.title = title.dataset.title;
    showTimes();
  }

  async function copy(button) {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.classList.add("copied");
    document.getElementById("copied").textContent = "Copied";
    setTimeout(() => button.classList.remove("copied"), 1500);
  }

  function pause(button) {
    const root = document.documentElement;
    if (root.dataset.paused) delete root.dataset.paused;
    else root.dataset.paused = String(Date.now());
    const paused = Boolean(root.dataset.paused);
    button.textContent = paused ? "Resume updates" : "Pause updates";
    button.setAttribute("aria-pressed", String(paused));
    document.dispatchEvent(new Event("resumed"));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.copy !== undefined) copy(button);
    else if (button.id === "pause") pause(button);
    else if (button.id === "local-time") {
      local = !local;
      try {
        localStorage.setItem(LOCAL, local ? "1" : "0");
      } catch {
        // As above.
      }
      showTimes();
    }
  });
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("local-time").hidden = false;
    document.getElementById("pause").hidden = !document.querySelector('[hx-trigger*="every "]');
    document.body.addEventListener("htmx:beforeRequest", (event) => {
      const polls = event.target.getAttribute("hx-trigger")?.includes("every ");
      if (polls && document.documentElement.dataset.paused) event.preventDefault();
    });
    document.body.addEventListener("htmx:afterSwap", prepare);
    prepare();
  });
})();
