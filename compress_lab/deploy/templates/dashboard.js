// Puts the sections that the server sends into the page as they change. The server has escaped every text in them, and
// the page's policy runs no script but this one.
const status = document.getElementById("status");

function listen() {
  const source = new EventSource("dashboard/events");
  source.onmessage = ({ data }) => {
    for (const [name, html] of Object.entries(JSON.parse(data))) {
      const section = document.getElementById(name);
      if (section) section.innerHTML = html;
    }
    status.textContent = `Live; last change at ${new Date().toLocaleTimeString()}.`;
  };
  source.onerror = () => {
    status.textContent = "The server does not answer; the page tries again.";
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  };
}

listen();
