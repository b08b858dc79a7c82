// better-auth with Redis as its secondary storage, which then holds the sessions. A password check would drown
// everything else, so sessions are created as its own plugins do it: through the internal adapter. Users come from a
// database adapter that is a Map, which costs less than any database would.

import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { createAdapterFactory } from "better-auth/adapters";
import { createAuthEndpoint } from "better-auth/api";
import { setSessionCookie } from "better-auth/cookies";
import { toNodeHandler } from "better-auth/node";
import { connect, port, SECRET } from "./redis.js";

const redis = await connect();
const users = new Map();

function ensureUser(id) {
  let user = users.get(id);
  if (!user) {
    const now = new Date();
    user = { id, name: id, email: `${id}@example.org`, emailVerified: true, image: null, createdAt: now, updatedAt: now };
    users.set(id, user);
  }
  return user;
}

const byId = (where) => where?.find((clause) => clause.field === "id")?.value;
const database = createAdapterFactory({
  config: { adapterId: "map", adapterName: "Map", supportsJSON: true, supportsDates: true, supportsBooleans: true },
  adapter: () => ({
    create: async ({ data }) => data,
    findOne: async ({ model, where }) => (model === "user" ? users.get(byId(where)) ?? null : null),
    findMany: async () => [],
    update: async () => null,
    updateMany: async () => 0,
    delete: async () => {},
    deleteMany: async () => 0,
    count: async () => users.size,
  }),
});

const sessions = {
  id: "sessions",
  endpoints: {
    login: createAuthEndpoint("/login", { method: "POST" }, async (ctx) => {
      const user = ensureUser(ctx.body.user_id);
      const session = await ctx.context.internalAdapter.createSession(user.id);
      await setSessionCookie(ctx, { session, user });
      return ctx.json({ user_id: user.id });
    }),
    revokeAll: createAuthEndpoint("/users/:id/sessions", { method: "DELETE" }, async (ctx) => {
      await ctx.context.internalAdapter.deleteUserSessions(ctx.params.id);
      return ctx.json({ user_id: ctx.params.id });
    }),
  },
};

const auth = betterAuth({
  baseURL: `http://127.0.0.1:${port}`,
  secret: SECRET,
  database,
  secondaryStorage: {
    get: (key) => redis.get(key),
    set: (key, value, ttl) => (ttl ? redis.set(key, value, { EX: ttl }) : redis.set(key, value)),
    delete: (key) => redis.del(key),
  },
  // Every `get-session` refreshes, unless it says `disableRefresh`.
  session: { expiresIn: 30 * 86_400, updateAge: 0 },
  rateLimit: { enabled: false },
  telemetry: { enabled: false },
  logger: { level: "error" },
  advanced: { disableCSRFCheck: true },
  plugins: [sessions],
});

createServer(toNodeHandler(auth)).listen(port, "127.0.0.1");
