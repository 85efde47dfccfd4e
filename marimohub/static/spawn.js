// The page of a starting server: follows JupyterHub's progress stream and reloads, which leads to the server.
const bar = document.getElementById("progress");
const message = document.getElementById("progress-message");
const log = document.getElementById("progress-log");
const source = new EventSource(bar.dataset.url);

source.addEventListener("message", ({ data }) => {
  const event = JSON.parse(data);
  if (event.progress !== undefined) bar.value = event.progress;
  if (event.message && !event.ready) {
    message.textContent = event.message;
    const line = document.createElement("li");
    line.textContent = event.message;
    log.append(line);
  }
  if (event.ready) {
    source.close();
    location.reload();
  } else if (event.failed) {
    source.close();
    bar.remove();
    document.getElementById("heading").textContent = "Your notebook server did not start";
    document.getElementById("progress-details").open = true;
  }
});

source.addEventListener("error", () => {
  // The browser reconnects on its own unless the hub refused: then nothing is pending any more, and a reload tells what is.
  if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 3000);
});
