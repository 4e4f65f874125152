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

  // Errors lead to their fields; a hash in the address would only scroll.
  document.body.addEventListener("click", function (event) {
    const link = event.target.closest("a[data-field]");
    const field = link && document.getElementById(link.hash.slice(1));
    if (!field) return;
    event.preventDefault();
    field.focus();
  });
})();
