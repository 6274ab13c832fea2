// The live stream: a WebSocket that reconnects, and authenticates when the service asks for a key.

import { key } from "./api.js";

const FIRST_WAIT_MS = 1_000;
const MAX_WAIT_MS = 15_000;
const TICK_MS = 250;

/**
 * Streams `/ws` until the page is closed.
 *
 * `onMessages` gets the events and drops of a frame, `onState` gets `connecting`, `live`,
 * `waiting` (with the seconds to the next try) or `locked` (with the service's message about
 * the key, or null when none was sent).
 */
export class Stream {
  constructor({ onMessages, onState }) {
    this._onMessages = onMessages;
    this._onState = onState;
    this._wait_ms = FIRST_WAIT_MS;
    this._until = 0;
    this._timer = null;
    this._socket = null;
    this.state = "connecting";
  }

  /** Connect now, replacing any connection. */
  open() {
    clearTimeout(this._timer);
    const old = this._socket;
    const address = new URL("ws?coalesce=1", location.href);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    address.hash = "";
    const socket = new WebSocket(address);
    this._socket = socket;
    old?.close();
    this._say("connecting");
    socket.onmessage = ({ data }) => {
      if (socket !== this._socket) return;
      const frame = JSON.parse(data);
      this._take(socket, Array.isArray(frame) ? frame : [frame]);
    };
    socket.onclose = () => {
      if (socket === this._socket && this.state !== "locked") this._tryAgain();
    };
  }

  /** Reconnect now instead of waiting: the service seems to be back. */
  hurry() {
    if (this.state === "waiting") this.open();
  }

  _take(socket, messages) {
    switch (messages[0].type) {
      case "auth_required":
        if (key.get() === null) {
          this._say("locked", null);
          socket.close();
        } else {
          socket.send(JSON.stringify({ type: "auth", api_key: key.get() }));
        }
        return;
      case "auth_invalid":
        key.forget();
        this._say("locked", messages[0].message);
        return;
      case "hello":
        this._wait_ms = FIRST_WAIT_MS;
        this._say("live");
        return;
      default:
        this._onMessages(messages.filter(({ type }) => type === "event" || type === "dropped"));
    }
  }

  _tryAgain() {
    this._until = Date.now() + this._wait_ms;
    this._wait_ms = Math.min(2 * this._wait_ms, MAX_WAIT_MS);
    this._tick();
  }

  _tick() {
    const left = Math.ceil((this._until - Date.now()) / 1_000);
    if (left <= 0) {
      this.open();
      return;
    }
    this._say("waiting", left);
    this._timer = setTimeout(() => this._tick(), TICK_MS);
  }

  _say(state, more = null) {
    this.state = state;
    this._onState(state, more);
  }
}
