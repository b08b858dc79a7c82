-- Asks Edgekeep about a request, for haproxy.cfg: HAProxy has no auth_request of its own.
--
-- 200: the request goes on with the identity of the answer, and txn.edgekeep says "admitted". Anything else ends it here:
-- Edgekeep's refusals (400, 401, 403, 503) as they are, whatever else happened as 503. HAProxy goes on with the next rule
-- when a script fails, so that rule must refuse what is not admitted.

-- How long Edgekeep may take, in milliseconds. HAProxy's client tries four times.
local PATIENCE = 500

-- What Edgekeep decides by. No other header of the client is sent, so none can speak for the proxy.
local ASKED_BY = {
  "authorization", "cookie", "origin", "sec-fetch-site", "upgrade", "sec-websocket-version", "user-agent",
}

-- All that an application believes of Edgekeep: each is set or taken out, never the client's.
local IDENTITY = {
  "x-edgekeep-user", "x-edgekeep-session", "x-edgekeep-shard", "x-edgekeep-shard-epoch", "x-edgekeep-shard-next",
  "x-edgekeep-shard-previous",
}

-- Of a refusal, what the client gets.
local TOLD = { "content-type", "www-authenticate", "retry-after", "cache-control", "set-cookie" }

-- HAProxy counts a header's values from 0, its client and its replies from 1.
local function values(headers, name)
  local list = {}
  if headers and headers[name] then
    local at = 0
    while headers[name][at] do
      list[#list + 1] = headers[name][at]
      at = at + 1
    end
  end
  return list
end

local function refuse(txn, status, headers, body)
  local reply = txn:reply({ status = status, body = body })
  for name, list in pairs(headers) do
    for _, value in ipairs(list) do
      reply:add_header(name, value)
    end
  end
  txn:done(reply)
end

-- The Cookie line without Edgekeep's cookies, and whether something is left.
local function without_our_cookies(line)
  local rest = {}
  for pair in line:gmatch("[^;]+") do
    local name = pair:match("^%s*([^=]*)"):gsub("%s+$", "")
    if name ~= "__Host-edgekeep-at" and name ~= "__Host-edgekeep-rt" then
      rest[#rest + 1] = pair:match("^%s*(.-)%s*$")
    end
  end
  return table.concat(rest, "; ")
end

local function authorize(txn, edgekeep)
  local request = txn.http:req_get_headers()
  local ask = {
    ["x-forwarded-uri"] = { txn.f:pathq() },
    ["x-forwarded-method"] = { txn.f:method() },
    ["x-forwarded-for"] = { txn.f:src() },
    ["x-forwarded-proto"] = values(request, "x-forwarded-proto"),
    ["x-forwarded-host"] = values(request, "host"),
  }
  for _, name in ipairs(ASKED_BY) do
    local list = values(request, name)
    if #list > 0 then
      ask[name] = list
    end
  end

  local answer = core.httpclient():get({ url = edgekeep .. "/v1/authorize", headers = ask, timeout = PATIENCE })
  local status = answer and answer.status
  if status ~= 200 then
    if status ~= 400 and status ~= 401 and status ~= 403 and status ~= 503 then
      return refuse(txn, 503, { ["retry-after"] = { "1" } }, "")
    end
    local headers = {}
    for _, name in ipairs(TOLD) do
      headers[name] = values(answer.headers, name)
    end
    return refuse(txn, status, headers, answer.body)
  end

  for _, name in ipairs(IDENTITY) do
    txn.http:req_del_header(name)
    local value = values(answer.headers, name)[1]
    if value and value ~= "" then
      txn.http:req_set_header(name, value)
    end
  end
  -- The application sees neither access tokens nor Edgekeep's cookies.
  for _, line in ipairs(values(request, "authorization")) do
    if line:lower():match("^bearer") then
      txn.http:req_del_header("authorization")
    end
  end
  txn.http:req_del_header("cookie")
  for _, line in ipairs(values(request, "cookie")) do
    local rest = without_our_cookies(line)
    if rest ~= "" then
      txn.http:req_add_header("cookie", rest)
    end
  end
  txn:set_var("txn.edgekeep", "admitted")
end

core.register_action("edgekeep-authorize", { "http-req" }, authorize, 1)
