// The application that the browser uses, on three ports: an origin behind the gateway, the login service that sets the
// gateway's cookies, and pages of somebody else.
//
// The login service answers on the gateway's host and not through the gateway, which lets no origin set its cookies.
// The others' port is another origin of the same site as `localhost`, and another site as `127.0.0.1`.
import { createHash } from "node:crypto";
import { createServer } from "node:http";

export async function start({ gateway, origin, serviceToken }) {
  const seen = { transfers: 0, handshakes: 0, requests: 0 };
  const servers = [];
  const listen = async (handler, port = 0) => {
    const server = createServer((request, response) => {
      handler(request, response).catch((error) => response.writeHead(500).end(`${error}`));
    });
    await new Promise((done, failed) => server.once("error", failed).listen(port, "127.0.0.1", done));
    servers.push(server);
    return server;
  };

  const behind = await listen(async (request, response) => {
    seen.requests += 1;
    const path = request.url.split("?")[0];
    await text(request);
    if (path.endsWith("/transfer") && request.method === "POST") {
      seen.transfers += 1;
      return json(response, { transferred: true });
    }
    if (path.endsWith("/me")) {
      return json(response, { user: request.headers["x-edgekeep-user"], cookie: request.headers.cookie ?? null });
    }
    page(response, "the application");
  }, origin);
  behind.on("upgrade", (request, socket) => {
    seen.handshakes += 1;
    const key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    const accept = createHash("sha1").update(key).digest("base64");
    const user = Buffer.from(request.headers["x-edgekeep-user"] ?? "");
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: ${accept}\r\n\r\n`,
    );
    // One frame with the user's name (RFC 6455 §5.2: final, text, not masked).
    socket.write(Buffer.concat([Buffer.from([0x81, user.length]), user]));
    socket.on("error", () => {});
  });

  const login = await listen(async (request, response) => {
    if (request.url === "/plant") {
      // What a script of the same host can do: a second cookie of the same name, in a partition of its own.
      response.setHeader("set-cookie", "__Host-edgekeep-at=planted; Path=/; Secure; Partitioned");
      return page(response, "planted");
    }
    if (request.method !== "POST") {
      return page(response, `<form method="post"><input name="user"><input name="seconds"><button>Log in</button></form>`);
    }
    const form = new URLSearchParams(await text(request));
    const session = { user_id: form.get("user"), device_info: { agent: request.headers["user-agent"] } };
    if (form.get("seconds")) session.access_ttl = Number(form.get("seconds"));
    const created = await fetch(`${gateway}/v1/sessions`, {
      method: "POST",
      headers: { authorization: `Bearer ${serviceToken}`, "content-type": "application/json" },
      body: JSON.stringify(session),
    });
    if (created.status !== 201) throw new Error(`no session: ${created.status} ${await created.text()}`);
    response.setHeader("set-cookie", created.headers.getSetCookie());
    response.writeHead(303, { location: `${gateway}/app/open/home` }).end();
  });

  const others = await listen(async (request, response) => {
    const planted = new URL(request.url, gateway).searchParams.get("plant");
    // As JSON it says the name twice.
    const plant =
      `<form method="post" enctype="text/plain" action="${gateway}/v1/sessions/refresh">` +
      `<input type="hidden" name='{"refresh_token":"' value='","refresh_token":"${planted}"}'><button>Win</button></form>`;
    const transfer = `<form method="post" action="${gateway}/app/account/transfer"><button>Win</button></form>`;
    page(response, `${planted ? plant : transfer}<a href="${gateway}/app/account/me">Look</a>`);
  });

  return {
    seen,
    login: `http://localhost:${login.address().port}`,
    otherOrigin: `http://localhost:${others.address().port}`,
    otherSite: `http://127.0.0.1:${others.address().port}`,
    stop() {
      for (const server of servers) {
        server.close();
        server.closeAllConnections();
      }
    },
  };
}

async function text(request) {
  let body = "";
  for await (const part of request) body += part;
  return body;
}

function json(response, body) {
  response.writeHead(200, { "content-type": "application/json", "cache-control": "no-store" });
  response.end(JSON.stringify(body));
}

function page(response, body) {
  response.writeHead(200, { "content-type": "text/html; charset=utf-8", "cache-control": "no-store" });
  response.end(`<!doctype html><title>${body.replace(/<.*/, "")}</title>${body}`);
}
