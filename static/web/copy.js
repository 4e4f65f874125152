// Buttons that copy a text: data-copy holds it, data-copy-from names the element that does.
(function () {
  "use strict";
  const SHOWN_MS = 1500;

  async function copy(button) {
    const text = button.dataset.copy ?? document.querySelector(button.dataset.copyFrom).textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      window.prompt("The browser does not let this page copy. Copy it from here:", text);
      return;
    }
    if (button.classList.contains("is-copied")) return; // shown already
    const before = button.getAttribute("aria-label");
    button.classList.add("is-copied");
    button.setAttribute("aria-label", "Copied");
    setTimeout(function () {
      button.classList.remove("is-copied");
      button.setAttribute("aria-label", before);
    }, SHOWN_MS);
  }

  document.body.addEventListener("click", function (event) {
    const button = event.target.closest("[data-copy], [data-copy-from]");
    if (button) copy(button);
  });
})();
