// A form that is renewed in place: what is being typed stays, and the keyboard goes on where it is needed.
(function () {
  "use strict";
  Idiomorph.defaults.ignoreActiveValue = true;

  document.body.addEventListener("htmx:afterSettle", function (event) {
    if (event.target.id !== "editor") return;
    const place = document.querySelector("#editor [data-focus]");
    if (!place) return;
    place.focus({ preventScroll: true });
    place.scrollIntoView({ block: "nearest" });
  });

  // A form that does not reach the server says so; it is never sent again by itself.
  const notSent = document.getElementById("not-sent");
  for (const name of ["htmx:responseError", "htmx:sendError", "htmx:timeout"]) {
    document.body.addEventListener(name, function (event) {
      if (event.detail.target.id !== "editor") return;
      const status = event.detail.xhr?.status;
      notSent.querySelector("[data-cause]").textContent = status ? " (status " + status + ")" : "";
      notSent.hidden = false;
      notSent.scrollIntoView({ block: "nearest" });
    });
  }
  document.body.addEventListener("htmx:beforeRequest", function (event) {
    if (event.detail.target.id === "editor") notSent.hidden = true;
  });

  // Errors lead to their fields; a hash in the address would only scroll.
  document.body.addEventListener("click", function (event) {
    const link = event.target.closest("a[data-field]");
    const field = link && document.getElementById(link.hash.slice(1));
    if (!field) return;
    event.preventDefault();
    field.focus();
  });
})();
