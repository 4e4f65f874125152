// Keeps a page live: listens to server-sent events and tells the fragments to ask for themselves again (htmx does the rest).
// Shows when the connection is lost, and connects again by itself.
(function () {
  "use strict";
  const SILENCE_MS = 12000; // the server speaks at least every 5 s
  const RETRY_MS = 2000;
  const FRAGMENTS = ["timonel:services", "timonel:nodes", "timonel:operations"];
  const body = document.body;
  let source = null;
  let silence = 0;
  let retry = 0;
  let heardAt = new Date();

  // What a person opened stays open when the fragment is renewed, and what was copied is still said for its moment.
  Idiomorph.defaults.callbacks.beforeAttributeUpdated = function (name, node) {
    if (name === "open") return node.tagName !== "DETAILS";
    return !(["class", "aria-label"].includes(name) && node.classList.contains("is-copied"));
  };

  function show(state) {
    const place = document.querySelector("[data-connection]");
    if (place.dataset.connection === state) return;
    place.dataset.connection = state;
    for (const text of place.querySelectorAll("[data-connection-shown]")) text.hidden = text.dataset.connectionShown !== state;
    document.querySelector("[data-connection-lost-at]").textContent = heardAt.toLocaleTimeString();
    document.querySelector("[data-connection-lost]").hidden = state !== "lost";
  }

  function renew(names) {
    for (const name of names) htmx.trigger(body, name);
  }

  function heard() {
    heardAt = new Date();
    show("live");
    clearTimeout(silence);
    silence = setTimeout(lost, SILENCE_MS);
  }

  function lost() {
    show("lost");
    disconnect();
    retry = setTimeout(connect, RETRY_MS);
  }

  function disconnect() {
    clearTimeout(silence);
    clearTimeout(retry);
    source?.close();
    source = null;
  }

  function connect() {
    disconnect();
    source = new EventSource(body.dataset.events);
    silence = setTimeout(lost, SILENCE_MS);
    // After a gap anything may have changed, so everything is renewed.
    source.addEventListener("hello", function () { heard(); renew(FRAGMENTS); });
    source.addEventListener("services", function () { heard(); renew(["timonel:services"]); });
    source.addEventListener("nodes", function () { heard(); renew(["timonel:nodes"]); });
    source.addEventListener("operations", function () { heard(); renew(["timonel:operations"]); });
    source.addEventListener("alive", heard);
    source.addEventListener("signed-out", function () {
      disconnect();
      location.assign(body.dataset.login + "?next=" + encodeURIComponent(location.pathname + location.search));
    });
    source.addEventListener("error", function () {
      // The server ends each stream after some minutes: connecting again at once is no loss.
      if (source && source.readyState === EventSource.CONNECTING && Date.now() - heardAt < RETRY_MS) return;
      lost();
    });
  }

  // A fragment that could not be fetched is asked for again, even when nothing changes meanwhile.
  let again = 0;
  for (const name of ["htmx:responseError", "htmx:sendError", "htmx:timeout"]) {
    body.addEventListener(name, function () {
      clearTimeout(again);
      again = setTimeout(function () { renew(FRAGMENTS); }, RETRY_MS);
    });
  }

  // A hidden tab keeps no connection: browsers allow six to one server.
  document.addEventListener("visibilitychange", function () {
    if (document.hidden) disconnect(); else connect();
  });

  function ago(at) {
    const seconds = Math.max(0, Math.round((Date.now() - at) / 1000));
    if (seconds < 60) return seconds + " s ago";
    if (seconds < 3600) return Math.floor(seconds / 60) + " min ago";
    if (seconds < 86400) return Math.floor(seconds / 3600) + " h ago";
    return Math.floor(seconds / 86400) + " d ago";
  }

  function tellTimes() {
    for (const time of document.querySelectorAll("time[data-relative]")) {
      const text = ago(Date.parse(time.dateTime));
      if (time.textContent !== text) time.textContent = text;
    }
  }

  body.addEventListener("htmx:afterSwap", tellTimes);
  setInterval(tellTimes, 1000);
  tellTimes();
  connect();
})();
