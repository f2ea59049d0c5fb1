// Asks the API. An answer comes with the server's clock, because only that says how old it is.

const TIMEOUT_MS = 5000;

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

let token = readToken();

function readToken() {
  try {
    return sessionStorage.getItem("gapwatch-token") ?? "";
  } catch {
    return "";
  }
}

export function setToken(secret) {
  token = secret;
  try {
    sessionStorage.setItem("gapwatch-token", secret); // for this tab only
  } catch {
    // storage may be forbidden: then the token lasts until the page is left
  }
}

export function hasToken() {
  return token !== "";
}

/** Return `{body, serverMs}`; throws Refused for an answer that is not 200, TypeError or DOMException for none at all. */
export async function get(path) {
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  const body = await response.json();
  if (!response.ok) throw new Refused(response.status, body.detail ?? response.statusText);
  return { body, serverMs: Date.parse(response.headers.get("Date") ?? "") };
}
