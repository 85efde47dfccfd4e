// JupyterHub counts redirects in the address to stop loops. A reload of an error page must start counting afresh.
const address = new URL(location.href);
if (address.searchParams.has("redirects")) {
  address.searchParams.delete("redirects");
  history.replaceState(history.state, "", address);
}
