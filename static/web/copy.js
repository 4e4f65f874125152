// Buttons that copy a text: data-copy holds it, data-copy-from names the element that does.
(function () {
  "use strict";
  const SHOWN_MS = 1500;

  async function copy(button) {
    const text = button.dataset.copy ?? document.querySelector(button.dataset.copyFrom).textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      return; // not allowed by the browser: the text can still be selected
    }
    button.classList.add("is-copied");
    const before = button.dataset.label ?? button.getAttribute("aria-label");
    button.dataset.label = before;
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
