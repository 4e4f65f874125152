// Light, dark, or what the system says: kept in the browser, switched by the button in the header.
(function () {
  "use strict";
  const KEY = "timonel-theme";
  const system = window.matchMedia("(prefers-color-scheme: dark)");

  function chosen() {
    try { return localStorage.getItem(KEY) || "auto"; } catch { return "auto"; }
  }

  function show() {
    const theme = chosen();
    document.documentElement.dataset.bsTheme = theme === "auto" ? (system.matches ? "dark" : "light") : theme;
    const button = document.querySelector("[data-theme-switch]");
    if (!button) return;
    const label = "Theme: " + (theme === "auto" ? "automatic" : theme);
    button.setAttribute("aria-label", label);
    button.title = label;
    for (const icon of button.querySelectorAll("[data-theme-icon]")) icon.hidden = icon.dataset.themeIcon !== theme;
  }

  show();
  system.addEventListener("change", show);
  document.addEventListener("DOMContentLoaded", function () {
    show();
    document.querySelector("[data-theme-switch]")?.addEventListener("click", function () {
      const next = { auto: "light", light: "dark", dark: "auto" }[chosen()];
      try { localStorage.setItem(KEY, next); } catch { /* private window: the theme lasts for this page */ }
      show();
    });
  });
})();
