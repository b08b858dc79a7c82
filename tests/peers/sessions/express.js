// express-session with connect-redis, as their READMEs show it, plus the one thing that ending all sessions of a user
// needs and neither offers: a set of a user's session ids, kept by the application.

import express from "express";
import session from "express-session";
import { RedisStore } from "connect-redis";
import { connect, port, SECRET } from "./redis.js";

const redis = await connect();
const DAY = 86_400;
const index = (user) => `user-sessions:${user}`;

const app = express();
// What an operator who measures turns off.
app.disable("x-powered-by");
app.disable("etag");
app.use(session({
  store: new RedisStore({ client: redis, ttl: 30 * DAY }),
  secret: SECRET,
  resave: false,
  saveUninitialized: false,
  cookie: { httpOnly: true, sameSite: "lax", maxAge: 30 * DAY * 1000 },
}));

app.post("/login", express.json(), async (req, res) => {
  req.session.user_id = req.body.user_id;
  await redis.sAdd(index(req.body.user_id), req.sessionID);
  res.status(201).json({ user_id: req.body.user_id });
});

app.get("/me", (req, res) => {
  if (!req.session.user_id) return res.status(401).json({ error: "no session" });
  res.json({ user_id: req.session.user_id });
});

// The nearest to a rotation: a new id for the same session; the old one stops working.
app.post("/refresh", (req, res, next) => {
  const user = req.session.user_id;
  if (!user) return res.status(401).json({ error: "no session" });
  const old = req.sessionID;
  req.session.regenerate((error) => {
    if (error) return next(error);
    req.session.user_id = user;
    Promise.all([redis.sRem(index(user), old), redis.sAdd(index(user), req.sessionID)])
      .then(() => res.json({ user_id: user }), next);
  });
});

app.delete("/users/:id/sessions", async (req, res) => {
  const ids = await redis.sMembers(index(req.params.id));
  // Each key has a slot of its own, so each is a call; the client sends them in one go.
  await Promise.all([...ids.map((id) => redis.del(`sess:${id}`)), redis.del(index(req.params.id))]);
  res.status(200).json({ user_id: req.params.id, ended: ids.length });
});

app.listen(port, "127.0.0.1");
