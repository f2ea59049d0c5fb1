// Runs before the first paint, so that the page never flashes in the other theme.
"use strict";
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("gapwatch-theme");
  } catch {
    // storage may be forbidden: then the system decides
  }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
