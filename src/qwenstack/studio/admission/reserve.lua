-- Count one request in every scope, or in none.
-- KEYS: the workspace's clock, then for each scope its windows and its leases.
-- ARGS: time ('' for the server's) · ms to keep keys · epoch last seen · age in µs of the caller's
--   last admission · id of this admission · lease in µs · tokens · minute span, grain · second
--   span, grain · then for each scope: requests a minute, tokens a minute, requests a second,
--   tokens a second, concurrency, with -1 for no limit.
-- Answers "1 epoch snapshot…", then the run index in both windows of each scope ('-' for none),
--      or "0 epoch snapshot… kind, scope number, limit, window, wait in µs".

local keep_ms, id, lease, tokens = ARGS[2], ARGS[5], tonumber(ARGS[6]), tonumber(ARGS[7])
local minute_span, minute_grain = tonumber(ARGS[8]), tonumber(ARGS[9])
local second_span, second_grain = tonumber(ARGS[10]), tonumber(ARGS[11])
local REQUESTS, TOKENS, CONCURRENCY, HISTORY_LOST = 1, 2, 3, 4

local clock = read_clock(KEYS[1], ARGS[1])
local now = clock.now
if not clock.epoch then
  clock.epoch = id
end
-- The caller was admitted under an epoch that is gone: the store lost its data. What was admitted
-- before counts until it has left the window, and nobody knows it any more; so nothing is admitted.
if ARGS[3] ~= '' and ARGS[3] ~= clock.epoch then
  clock.blind = math.max(clock.blind, now + minute_span - tonumber(ARGS[4]))
end

local worst = nil
local function held_up(kind, scope, limit, span, us)
  if not worst or us > worst[5] then
    worst = {kind, scope, limit, span, us}
  end
end
if now < clock.blind then
  held_up(HISTORY_LOST, 1, 0, minute_span, clock.blind - now)
end

local function check(w, scope, requests_most, tokens_most)
  if requests_most >= 0 and w.requests >= requests_most then
    held_up(REQUESTS, scope, requests_most, w.span, wait(w, now, w.requests + 1 - requests_most, 0))
  end
  if tokens_most >= 0 and w.tokens + tokens > tokens_most then
    held_up(TOKENS, scope, tokens_most, w.span, wait(w, now, 0, w.tokens + tokens - tokens_most))
  end
end

local scopes = {}
for number = 1, (#KEYS - 1) / 2 do
  local at = 6 + 5 * number
  local scope = {windows = KEYS[2 * number], leases = KEYS[2 * number + 1],
                 rpm = tonumber(ARGS[at + 1]), tpm = tonumber(ARGS[at + 2]),
                 rps = tonumber(ARGS[at + 3]), tps = tonumber(ARGS[at + 4]),
                 concurrency = tonumber(ARGS[at + 5])}
  local packed = redis.call('HMGET', scope.windows, 'm', 's')
  scope.minute = unpack_window(scope.windows, 'm', minute_span, minute_grain, packed[1], now)
  check(scope.minute, number, scope.rpm, scope.tpm)
  if packed[2] or scope.rps >= 0 or scope.tps >= 0 then
    scope.second = unpack_window(scope.windows, 's', second_span, second_grain, packed[2], now)
    check(scope.second, number, scope.rps, scope.tps)
  end
  if scope.concurrency >= 0 then
    redis.call('ZREMRANGEBYSCORE', scope.leases, '-inf', whole(now))
    if redis.call('ZCARD', scope.leases) >= scope.concurrency then
      held_up(CONCURRENCY, number, scope.concurrency, 0, 1000000)
    end
  end
  scopes[number] = scope
end

local indices = {}
for _, scope in ipairs(scopes) do
  local second_index = '-'
  if not worst then
    indices[#indices + 1] = whole(add(scope.minute, now, 1, tokens))
    if scope.second then
      second_index = whole(add(scope.second, now, 1, tokens))
    end
    indices[#indices + 1] = second_index
    if scope.concurrency >= 0 then
      redis.call('ZADD', scope.leases, whole(now + lease), id)
      redis.call('PEXPIRE', scope.leases, keep_ms)
    end
  end
  if scope.second and scope.second.dirty then
    redis.call('HSET', scope.windows, 'm', pack_window(scope.minute),
               's', pack_window(scope.second))
  elseif scope.minute.dirty then
    redis.call('HSET', scope.windows, 'm', pack_window(scope.minute))
  end
  if not worst then
    redis.call('PEXPIRE', scope.windows, keep_ms)
  end
end
write_clock(KEYS[1], clock, keep_ms)

-- The tightest minute window of each figure; -1 where none has a limit.
local requests = {-1, 0, 0}
local kept = {-1, 0, 0}
for _, scope in ipairs(scopes) do
  local w = scope.minute
  local empty_in = 0
  if w.head < w.after then
    empty_in = w.last + w.span - now
  end
  local left = math.max(0, scope.rpm - w.requests)
  if scope.rpm >= 0 and (requests[1] < 0 or left < requests[2]) then
    requests = {scope.rpm, left, empty_in}
  end
  left = math.max(0, scope.tpm - w.tokens)
  if scope.tpm >= 0 and (kept[1] < 0 or left < kept[2]) then
    kept = {scope.tpm, left, empty_in}
  end
end

local reply = {worst and '0' or '1', clock.epoch, whole(requests[1]), whole(requests[2]),
               whole(requests[3]), whole(kept[1]), whole(kept[2]), whole(kept[3])}
for _, value in ipairs(worst or indices) do
  reply[#reply + 1] = worst and whole(value) or value
end
return table.concat(reply, ' ')
