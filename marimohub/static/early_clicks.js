// Loaded before the page is drawn. Pages come drawn by the hub, so people click buttons before the page's module has been
// fetched: the last such click is kept, and done when the module says that it is ready.
(() => {
  let early = null;
  const keep = (event) => {
    const button = event.target.closest?.("main button[type=button]:not([data-bs-toggle])");
    if (button) early = button;
  };
  document.addEventListener("click", keep, true);
  window.marimohubReady = () => {
    document.removeEventListener("click", keep, true);
    if (early?.isConnected) early.click();
    early = null;
  };
})();
