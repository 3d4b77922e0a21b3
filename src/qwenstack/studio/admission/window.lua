-- The sliding window of window.py, in one hash a scope; read that file for the why.
--
-- A window's head is packed in the field of its name ('m' minute, 's' second): the index of its
-- oldest run, the index after its newest, the sums, the newest run (first, last, requests, tokens)
-- and the last instant of its oldest. Older runs stand in fields of their own, name .. index.
-- Indices start at the time of creation in µs and grow by one a grain at most, so that an index is
-- never used twice, even after the key expired. All times are µs and all numbers below 2^53.
--
-- Arguments come as one string of words ('-' for an empty one), and answers go as one: clients
-- spend more on each separate value than a script on splitting.

local ARGS = {}
for word in string.gmatch(ARGV[1], '%S+') do
  ARGS[#ARGS + 1] = word ~= '-' and word or ''
end

local function whole(number)
  return string.format('%.0f', number)
end

local HEAD = 'ddddddddd'
local RUN = 'ddd'

-- The steady clock of a workspace (SteadyClock in window.py), and what is known of its history.
local function read_clock(key, given)
  local raw
  if given == '' then
    local time = redis.call('TIME')
    raw = time[1] * 1000000 + time[2]
  else
    raw = tonumber(given)
  end
  local kept = redis.call('HMGET', key, 'raw', 'offset', 'epoch', 'blind')
  local offset = tonumber(kept[2]) or 0
  local before = tonumber(kept[1])
  if before and raw < before then
    offset = offset + before - raw
  end
  return {now = raw + offset, raw = raw, offset = offset, epoch = kept[3],
          blind = tonumber(kept[4]) or 0}
end

local function write_clock(key, clock, keep_ms)
  redis.call('HSET', key, 'raw', whole(clock.raw),
             'offset', whole(clock.offset),
             'epoch', clock.epoch, 'blind', whole(clock.blind))
  redis.call('PEXPIRE', key, keep_ms)
end

local function run_field(window, index)
  return window.name .. whole(index)
end

local function read_run(window, index)
  local packed = redis.call('HGET', window.key, run_field(window, index))
  if not packed then
    return nil
  end
  return struct.unpack(RUN, packed)
end

local function unpack_window(key, name, span, grain, packed, now)
  local w = {key = key, name = name, span = span, grain = grain, dirty = false}
  if packed then
    w.head, w.after, w.requests, w.tokens, w.first, w.last, w.run_requests, w.run_tokens,
      w.oldest = struct.unpack(HEAD, packed)
  else
    w.head, w.after, w.requests, w.tokens = now, now, 0, 0
    w.first, w.last, w.run_requests, w.run_tokens, w.oldest = 0, 0, 0, 0, 0
  end
  -- Forget the runs that have left.
  while w.head < w.after and w.oldest <= now - span do
    local requests, tokens = w.run_requests, w.run_tokens
    if w.head < w.after - 1 then
      local _
      _, requests, tokens = read_run(w, w.head)
      redis.call('HDEL', key, run_field(w, w.head))
    end
    w.requests = w.requests - requests
    w.tokens = w.tokens - tokens
    w.head = w.head + 1
    if w.head < w.after - 1 then
      w.oldest = read_run(w, w.head)
    else
      w.oldest = w.last
    end
    w.dirty = true
  end
  return w
end

local function pack_window(w)
  return struct.pack(HEAD, w.head, w.after, w.requests, w.tokens, w.first, w.last,
                     w.run_requests, w.run_tokens, w.oldest)
end

-- Count an event now; gives the index of its run.
local function add(w, now, requests, tokens)
  w.dirty = true
  w.requests = w.requests + requests
  w.tokens = w.tokens + tokens
  if w.head < w.after and now - w.first < w.grain then
    w.last = now
    w.run_requests = w.run_requests + requests
    w.run_tokens = w.run_tokens + tokens
  else
    if w.head < w.after then
      redis.call('HSET', w.key, run_field(w, w.after - 1),
                 struct.pack(RUN, w.last, w.run_requests, w.run_tokens))
    end
    w.after = w.after + 1
    w.first, w.last, w.run_requests, w.run_tokens = now, now, requests, tokens
  end
  if w.head == w.after - 1 then
    w.oldest = w.last
  end
  return w.after - 1
end

local function give_back(w, index, tokens)
  if index < w.head or index >= w.after then
    return
  end
  if index == w.after - 1 then
    w.run_tokens = w.run_tokens - tokens
  else
    local last, requests, kept = read_run(w, index)
    redis.call('HSET', w.key, run_field(w, index),
               struct.pack(RUN, last, requests, kept - tokens))
  end
  w.tokens = w.tokens - tokens
  w.dirty = true
end

-- How long until that much has left.
local function wait(w, now, requests, tokens)
  if w.head < w.after - 1 then
    local fields = {}
    for index = w.head, w.after - 2 do
      fields[#fields + 1] = run_field(w, index)
    end
    for _, packed in ipairs(redis.call('HMGET', w.key, unpack(fields))) do
      local last, run_requests, run_tokens = struct.unpack(RUN, packed)
      requests = requests - run_requests
      tokens = tokens - run_tokens
      if requests <= 0 and tokens <= 0 then
        return last + w.span - now
      end
    end
  end
  if w.head == w.after then
    return w.span
  end
  return w.last + w.span - now
end
