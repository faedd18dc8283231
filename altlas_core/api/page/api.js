/* Requests to our own server, with the API key where one is needed. The key is kept in this tab's session only. */

const KEY_NAME = "altlas-api-key";
const BASE = "/api/v1";

/** An answer that is an error, or no answer (status 0). `message` says what is wrong and what to do. */
export class ApiError extends Error {
  constructor(status, code, message, retryAfterS = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

export class Api {
  #askForKey;
  #asking = null;

  /** `askForKey(refused)` resolves to a key; `refused` says whether one was sent and not accepted. */
  constructor(askForKey) {
    this.#askForKey = askForKey;
  }

  get(path, signal) {
    return this.#json("GET", path, undefined, signal);
  }

  post(path, body) {
    return this.#json("POST", path, body);
  }

  remove(path) {
    return this.#json("DELETE", path);
  }

  async #json(method, path, body, signal) {
    const response = await this.open(method, path, body, signal);
    try {
      return await response.json();
    } catch {
      throw new ApiError(response.status, "no_json", "The server's answer was cut off. Try again.");
    }
  }

  /** The response once its head has come and says that all is well; asks for a key as long as it takes. */
  async open(method, path, body, signal) {
    for (;;) {
      if (this.#asking) await this.#asking;
      const key = sessionStorage.getItem(KEY_NAME);
      const headers = { Accept: "application/json" };
      if (body !== undefined) headers["Content-Type"] = "application/json";
      if (key) headers.Authorization = `Bearer ${key}`;
      const response = await fetched(BASE + path, {
        method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store",
      });
      if (response.ok) return response;
      const error = await errorOf(response);
      if (response.status !== 401) throw error;
      await this.#newKey(key);
    }
  }

  /** Asks once for all requests that wait for a key. */
  async #newKey(tried) {
    const current = sessionStorage.getItem(KEY_NAME);
    if (current && current !== tried) return; // somebody else has asked meanwhile
    this.#asking ??= this.#askForKey(Boolean(tried)).then((key) => {
      sessionStorage.setItem(KEY_NAME, key);
      this.#asking = null;
    });
    await this.#asking;
  }
}

async function fetched(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The server does not answer. Is altlas serve still running?");
  }
}

async function errorOf(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // not one of our own answers: a proxy's, say
  }
  const words = typeof body.error === "string" ? body.error : `The server answered ${response.status}.`;
  const after = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new ApiError(response.status, body.code ?? "", words, Number.isFinite(after) ? after : null);
}
