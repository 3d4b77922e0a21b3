-- Extend the leases of requests that still run.
-- KEYS: the workspace's clock, then leases.
-- ARGS: time · ms to keep keys · lease in µs · then pairs: number of the key after the clock, id.

local clock = read_clock(KEYS[1], ARGS[1])
local deadline = whole(clock.now + tonumber(ARGS[3]))
for at = 4, #ARGS, 2 do
  -- Only what is there: one that was settled meanwhile must not come back.
  redis.call('ZADD', KEYS[tonumber(ARGS[at]) + 1], 'XX', deadline, ARGS[at + 1])
end
for number = 2, #KEYS do
  redis.call('PEXPIRE', KEYS[number], ARGS[2])
end
if clock.epoch then
  write_clock(KEYS[1], clock, ARGS[2])
end
return '1'
