// The stores of both Node peers: one Redis, or a cluster when REDIS names more than one server (`host:port`, separated
// by commas).

import { createClient, createCluster } from "redis";

export async function connect() {
  const urls = process.env.REDIS.split(",").map((address) => `redis://${address}`);
  const client = urls.length > 1
    ? createCluster({ rootNodes: urls.map((url) => ({ url })) })
    : createClient({ url: urls[0] });
  client.on("error", (error) => console.error(error));
  await client.connect();
  return client;
}

// express-session and better-auth sign their cookies; any fixed text will do where nobody attacks.
export const SECRET = "a secret of forty characters and no entropy";

export const port = Number(process.env.PORT);
