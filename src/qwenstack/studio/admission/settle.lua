-- End an admitted request: give back what it did not use, or charge what it used beyond.
-- KEYS: as in reserve.lua.
-- ARGS: time · ms to keep keys · epoch of the admission · its id · tokens unused (negative: beyond)
--   · minute span, grain · second span, grain · then for each scope its run index in both windows.

local keep_ms, id, unused = ARGS[2], ARGS[4], tonumber(ARGS[5])
local spans = {m = {tonumber(ARGS[6]), tonumber(ARGS[7])},
               s = {tonumber(ARGS[8]), tonumber(ARGS[9])}}
local clock = read_clock(KEYS[1], ARGS[1])
if not clock.epoch then
  clock.epoch = id
end
local known = clock.epoch == ARGS[3]

for number = 1, (#KEYS - 1) / 2 do
  local key = KEYS[2 * number]
  redis.call('ZREM', KEYS[2 * number + 1], id)
  if unused ~= 0 then
    local packed = redis.call('HMGET', key, 'm', 's')
    for position, name in ipairs({'m', 's'}) do
      local index = ARGS[9 + 2 * (number - 1) + position]
      if index ~= '' and (unused < 0 or (known and packed[position])) then
        local w = unpack_window(key, name, spans[name][1], spans[name][2], packed[position],
                                clock.now)
        if unused < 0 then
          add(w, clock.now, 0, -unused)
        else
          give_back(w, tonumber(index), unused)
        end
        if w.dirty then
          redis.call('HSET', key, name, pack_window(w))
          redis.call('PEXPIRE', key, keep_ms)
        end
      end
    end
  end
end
write_clock(KEYS[1], clock, keep_ms)
return known and '1' or '0'
