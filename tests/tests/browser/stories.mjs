// Stories of a real Chromium with Edgekeep's cookies. Reads one line of JSON {gateway, origin, serviceToken, rounds} and
// prints one line of JSON {name, error?, note?} for each story.
import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import { start } from "./application.mjs";

const ACCESS = "__Host-edgekeep-at";
const REFRESH = "__Host-edgekeep-rt";

const input = createInterface({ input: process.stdin });
const options = JSON.parse((await input[Symbol.asyncIterator]().next()).value);
const { gateway } = options;
const application = await start(options);
const { seen } = application;
const browser = await chromium.launch({
  executablePath: process.env.EDGEKEEP_CHROMIUM ?? "/usr/bin/chromium",
  // A container has no user to sandbox; everything that is visited is ours.
  args: ["--no-sandbox"],
});
// Whoever started this is gone.
input.on("close", () => process.exit(1));

/** Logs in as a person does: the form, the button, the page behind it. */
async function logIn(context, user, seconds = "") {
  const page = await context.newPage();
  await page.goto(`${application.login}/`);
  await page.fill("[name=user]", user);
  await page.fill("[name=seconds]", seconds);
  await page.click("button");
  await page.waitForURL(`${gateway}/app/open/home`);
  return page;
}

/** A request by the page's own script. */
function ask(page, path, init = {}) {
  return page.evaluate(
    async ([path, init]) => {
      try {
        const response = await fetch(path, init);
        const body = await response.text();
        return { status: response.status, type: response.type, body: body.startsWith("{") ? JSON.parse(body) : body };
      } catch (error) {
        return { failed: String(error) };
      }
    },
    [path, init],
  );
}

async function cookie(context, name) {
  const found = (await context.cookies(gateway)).filter((cookie) => cookie.name === name);
  assert.ok(found.length <= 1, `${name} is there ${found.length} times`);
  return found[0];
}

const counter = (token) => Buffer.from(token, "base64url").readUInt32BE(17);

const refreshNow = (page) => ask(page, "/v1/sessions/refresh", { method: "POST" });

async function isLoggedIn(page, user) {
  const me = await ask(page, `${gateway}/app/account/me`);
  if (me.status === 200) assert.deepEqual(me.body, { user, cookie: null }, "the origin's view");
  return me.status === 200;
}

/** What the gateway answers to what `act` makes the browser send to a path. */
async function answerTo(page, path, act) {
  const answered = page.waitForResponse((response) => response.url() === `${gateway}${path}`);
  await act();
  return answered;
}

const stories = {
  async logging_in_sets_cookies_that_no_script_can_read(context) {
    const page = await logIn(context, "ada");
    for (const name of [ACCESS, REFRESH]) {
      const { domain, path, httpOnly, secure, sameSite } = await cookie(context, name);
      assert.deepEqual(
        { domain, path, httpOnly, secure, sameSite },
        { domain: "localhost", path: "/", httpOnly: true, secure: true, sameSite: "Lax" },
      );
    }
    assert.equal(await page.evaluate("document.cookie"), "");
    assert.ok(await isLoggedIn(page, "ada"));
    const devices = await ask(page, "/v1/sessions");
    assert.equal(devices.body.sessions.length, 1);
    assert.equal(devices.body.sessions[0].current, true);
    const transferred = await ask(page, "/app/account/transfer", { method: "POST" });
    assert.equal(transferred.status, 200, "a page of the same origin may");
  },

  async tabs_that_refresh_at_once_all_stay_logged_in(context) {
    const tabs = [await logIn(context, "tabs")];
    for (let more = 0; more < 2; more += 1) {
      const tab = await context.newPage();
      await tab.goto(`${gateway}/app/open/home`);
      tabs.push(tab);
    }
    const given = [];
    for (const tab of tabs) {
      tab.on("response", (response) => {
        if (response.url().endsWith("/v1/sessions/refresh")) given.push(response.headersArray());
      });
    }
    let raced = 0;
    let behind = 0;
    let last = counter((await cookie(context, REFRESH)).value);
    for (let round = 0; round < options.rounds; round += 1) {
      given.length = 0;
      // Tabs keep no time with each other: they wait for the same moment.
      const at = Date.now() + 60;
      const answers = await Promise.all(
        tabs.map((tab) =>
          tab.evaluate(async (at) => {
            while (Date.now() < at) await new Promise((done) => setTimeout(done, Math.max(0, at - Date.now() - 5)));
            const response = await fetch("/v1/sessions/refresh", { method: "POST" });
            return { status: response.status, body: await response.json() };
          }, at),
        ),
      );
      for (const { status, body } of answers) {
        assert.equal(status, 200, JSON.stringify(body));
        assert.ok(!("access_token" in body) && !("refresh_token" in body), "tokens are in the cookies alone");
      }
      const tokens = (await Promise.all(given)).map((headers) => {
        const set = headers.find(({ name, value }) => name.toLowerCase() === "set-cookie" && value.includes(REFRESH));
        return set.value.split(`${REFRESH}=`)[1].split(";")[0];
      });
      assert.equal(tokens.length, tabs.length);
      const counters = tokens.map(counter);
      // Tabs that raced were given one token, byte for byte; whoever came later, the next one.
      assert.equal(new Set(tokens).size, new Set(counters).size);
      assert.ok(Math.min(...counters) > last, `${counters} after ${last}`);
      if (new Set(counters).size < tabs.length) raced += 1;
      const { value } = await cookie(context, REFRESH);
      assert.ok(tokens.includes(value), "all tabs hold a token that was given just now");
      // A tab that came later rotates once more, and the answer of an earlier one may come in after its own: the cookie
      // is then one behind, which the grace forgives.
      last = counter(value);
      if (last < Math.max(...counters)) behind += 1;
      for (const tab of tabs) assert.ok(await isLoggedIn(tab, "tabs"), `round ${round}`);
    }
    assert.ok(raced > options.rounds / 4, `the tabs raced in ${raced} of ${options.rounds} rounds only`);
    return `${raced} of ${options.rounds} rounds raced, ${behind} ended with an older answer`;
  },

  async a_form_of_others_changes_nothing(context) {
    const page = await logIn(context, "form");
    const before = seen.transfers;
    for (const [from, status, code] of [
      // Another site: SameSite=Lax leaves the cookies at home.
      [application.otherSite, 401, "missing_credential"],
      // Another origin of the same site: the cookies come, and the gateway refuses.
      [application.otherOrigin, 403, "cross_site"],
    ]) {
      await page.goto(from);
      const answer = await answerTo(page, "/app/account/transfer", () => page.click("button"));
      assert.equal(answer.status(), status, from);
      assert.equal((await answer.json()).code, code, from);
    }
    assert.equal(seen.transfers, before, "it reached the origin");
    // A link from anywhere is no harm: the user is at home there.
    await page.goto(application.otherSite);
    const looked = await answerTo(page, "/app/account/me", () => page.click("a"));
    assert.equal(looked.status(), 200);
    assert.equal((await looked.json()).user, "form");
  },

  async a_form_of_others_cannot_log_one_in_as_somebody_else(context) {
    const theirs = await browser.newContext();
    await logIn(theirs, "attacker");
    const token = (await cookie(theirs, REFRESH)).value;
    await theirs.close();
    const page = await logIn(context, "victim");
    for (const from of [application.otherSite, application.otherOrigin]) {
      await page.goto(`${from}/?plant=${token}`);
      const answer = await answerTo(page, "/v1/sessions/refresh", () => page.click("button"));
      assert.equal(answer.status(), 403, from);
      assert.equal((await answer.json()).code, "cross_site", from);
    }
    await page.goto(`${gateway}/app/open/home`);
    assert.ok(await isLoggedIn(page, "victim"));
    // Nor can a script, whose body is as it should be.
    const body = JSON.stringify({ refresh_token: token });
    for (const from of [application.otherSite, application.otherOrigin]) {
      await page.goto(from);
      const blind = { credentials: "include", method: "POST", mode: "no-cors", body };
      const answer = await answerTo(page, "/v1/sessions/refresh", () => ask(page, `${gateway}/v1/sessions/refresh`, blind));
      assert.equal(answer.status(), 403, from);
    }
    await page.goto(`${gateway}/app/open/home`);
    assert.ok(await isLoggedIn(page, "victim"));
    // The very same call is answered to who is no browser: the token was not spent.
    const relayed = await fetch(`${gateway}/v1/sessions/refresh`, { method: "POST", body });
    assert.equal(relayed.status, 200, await relayed.text());
  },

  async scripts_of_others_cannot_use_the_session(context) {
    const page = await logIn(context, "scripts");
    const token = (await cookie(context, REFRESH)).value;
    const before = seen.transfers;
    for (const from of [application.otherSite, application.otherOrigin]) {
      await page.goto(from);
      const everywhere = { credentials: "include" };
      const blind = { ...everywhere, method: "POST", mode: "no-cors" };
      const expected = from === application.otherSite ? 401 : 403;
      for (const path of ["/app/account/transfer", "/v1/sessions/refresh"]) {
        const answer = await answerTo(page, path, () => ask(page, gateway + path, blind));
        assert.equal(answer.status(), expected, `${path} from ${from}`);
      }
      const ending = { ...everywhere, method: "DELETE" };
      for (const path of ["/v1/sessions/current", "/v1/sessions?except=current"]) {
        assert.match((await ask(page, gateway + path, ending)).failed ?? "", /Failed to fetch/, "its preflight is refused");
      }
      assert.match((await ask(page, `${gateway}/app/account/me`, everywhere)).failed ?? "", /Failed to fetch/, "unreadable");
    }
    assert.equal(seen.transfers, before, "it reached the origin");
    assert.equal((await cookie(context, REFRESH)).value, token, "the refresh token was not spent");
    await page.goto(`${gateway}/app/open/home`);
    assert.ok(await isLoggedIn(page, "scripts"));
  },

  async a_websocket_opens_for_ones_own_pages_only(context) {
    const page = await logIn(context, "socket");
    const open = () =>
      page.evaluate(
        (url) =>
          new Promise((done) => {
            const socket = new WebSocket(url);
            socket.onmessage = ({ data }) => done(data) || socket.close();
            socket.onerror = () => done("refused");
          }),
        `${gateway.replace("http", "ws")}/app/socket`,
      );
    assert.equal(await open(), "socket");
    const before = seen.handshakes;
    for (const from of [application.otherSite, application.otherOrigin]) {
      await page.goto(from);
      assert.equal(await open(), "refused", from);
    }
    assert.equal(seen.handshakes, before, "it reached the origin");
  },

  async two_values_of_one_cookie_are_refused_and_both_cleared(context) {
    const page = await logIn(context, "two");
    await page.goto(`${application.login}/plant`);
    await page.goto(`${gateway}/app/open/home`);
    const refused = await ask(page, "/app/account/me");
    assert.equal(refused.status, 401, JSON.stringify(refused.body));
    assert.equal(refused.body.code, "invalid_token");
    assert.equal(await cookie(context, ACCESS), undefined);
    assert.equal(await cookie(context, REFRESH), undefined);
    assert.equal((await ask(page, "/app/account/me")).body.code, "missing_credential");
    await page.close();
    assert.ok(await isLoggedIn(await logIn(context, "two"), "two"), "and one can log in again");
  },

  async logging_out_leaves_nothing_behind(context) {
    const page = await logIn(context, "out");
    const old = await cookie(context, REFRESH);
    const oldAccess = await cookie(context, ACCESS);
    await page.evaluate("localStorage.setItem('draft', 'secret')");
    const answer = await answerTo(page, "/v1/sessions/current", () => ask(page, "/v1/sessions/current", { method: "DELETE" }));
    assert.equal(answer.status(), 204);
    assert.deepEqual(await context.cookies(gateway), []);
    await page.goto(`${gateway}/app/open/home`);
    assert.equal(await page.evaluate("localStorage.getItem('draft')"), null);
    assert.equal((await ask(page, "/app/account/me")).status, 401);
    // Somebody kept a copy.
    await context.addCookies([old, oldAccess]);
    assert.equal((await ask(page, "/app/account/me")).body.code, "session_ended");
    await context.clearCookies();
    await context.addCookies([old]);
    assert.equal((await refreshNow(page)).body.code, "invalid_refresh_token");
    assert.deepEqual(await context.cookies(gateway), [], "what is of no use is cleared");
  },

  async an_expired_access_token_is_refreshed_when_the_page_asks(context) {
    const page = await logIn(context, "late", "2");
    const token = (await cookie(context, REFRESH)).value;
    await page.waitForFunction("fetch('/app/account/me').then((response) => response.status === 401)", null, { polling: 250 });
    assert.equal((await cookie(context, REFRESH)).value, token, "nothing refreshes by itself");
    // On a busy machine the next two seconds may be over before the page has asked.
    let refreshes = 0;
    do {
      const refreshed = await refreshNow(page);
      refreshes += 1;
      assert.equal(refreshed.status, 200, JSON.stringify(refreshed.body));
      assert.ok(refreshed.body.expires_in <= 2, "as short as the login service wanted it");
      assert.ok(refreshes < 10, "a new token never lets the page in");
    } while (!(await isLoggedIn(page, "late")));
    assert.equal(counter((await cookie(context, REFRESH)).value), counter(token) + refreshes);
  },
};

for (const [name, story] of Object.entries(stories)) {
  const context = await browser.newContext();
  context.setDefaultTimeout(15_000);
  try {
    console.log(JSON.stringify({ name, note: await story(context) }));
  } catch (error) {
    console.log(JSON.stringify({ name, error: error.stack ?? String(error) }));
  }
  await context.close();
}
await browser.close();
application.stop();
process.exit(0);
