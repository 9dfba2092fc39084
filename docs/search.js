// Search in pages that are opened from disk: a browser starts no worker there, so a frame does its work.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = `<body><script>
        postMessage = data => parent.postMessage(data, "*");
        importScripts = (...sources) => sources.reduce((before, source) => before.then(() => new Promise(done => {
          const script = document.createElement("script");
          script.src = source;
          script.onload = done;
          document.body.append(script);
        })), Promise.resolve());
      </` + `script><script src="${url}"></` + `script></body>`;
      this.ready = new Promise(done => { frame.onload = done; });
      window.addEventListener("message", event => {
        if (event.source === frame.contentWindow) {
          const copy = new MessageEvent("message", { data: event.data });
          this.dispatchEvent(copy);
          if (this.onmessage) this.onmessage(copy);
        }
      });
      this.frame = frame;
      document.body.append(frame);
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
