// What is shown is true when it is read: a part that can't be brought up to date says since when
// and turns grey, and a page that nothing brings up to date says how old it is.
(() => {
  "use strict";
  const PATIENCE = 5000; // ms beyond three rounds
  const OLD = 60000;
  const loaded = Date.now();
  let awake = loaded;
  const fresh = new WeakMap(); // a part is replaced whenever it is brought up to date
  const failed = new WeakMap();

  const clock = (at) => window.evosagaClock?.(new Date(at)) ?? `${new Date(at).toISOString().slice(11, 19)} UTC`;
  const period = (part) => 1000 * parseFloat(part.getAttribute("hx-trigger").slice(6));

  function staleSince(part, now) {
    if (!fresh.has(part)) fresh.set(part, now);
    const late = now - Math.max(fresh.get(part), awake) > 3 * period(part) + PATIENCE;
    return failed.has(part) || late ? fresh.get(part) : null;
  }

  function look() {
    const note = document.getElementById("stale");
    if (!note || document.hidden) return;
    const now = Date.now();
    const paused = document.documentElement.dataset.paused;
    const parts = [...document.querySelectorAll('[hx-trigger^="every "]')];
    let since = null, why = "the server does not answer";
    for (const part of paused ? [] : parts) {
      const at = staleSince(part, now);
      part.classList.toggle("stale", at !== null);
      if (at !== null && (since === null || at < since)) {
        since = at;
        why = failed.get(part) || why;
      }
    }
    let said = "";
    if (paused) said = `Updates are paused since ${clock(Number(paused))}. What is shown is from then.`;
    else if (since !== null) said = `Not up to date since ${clock(since)}: ${why}. What is grey is from then.`;
    else if (!parts.length && now - loaded > OLD) said = `This page is from ${clock(loaded)}; reload it to see what is so now.`;
    document.documentElement.classList.toggle("stale", since !== null);
    note.hidden = !said;
    if (note.textContent !== said) note.textContent = said;
  }

  function noteFailure(event) {
    const answer = event.detail.xhr ? event.detail.xhr.status : 0;
    failed.set(event.detail.elt, answer ? `the server answers ${answer}` : "the server does not answer");
    look();
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const kind of ["sendError", "responseError", "timeout", "swapError"]) {
      document.body.addEventListener(`htmx:${kind}`, noteFailure);
    }
    document.body.addEventListener("htmx:afterSwap", look);
    look();
    setInterval(look, 1000);
  });
  document.addEventListener("resumed", () => {
    awake = Date.now();
    look();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) awake = Date.now();
  });
})();
