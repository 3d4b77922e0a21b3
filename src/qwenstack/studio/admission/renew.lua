-- Extend the leases of requests that still run.
-- KEYS: the workspace's clock, then leases.
-- ARGV: time · ms to keep keys · lease in µs · then pairs: number of the key after the clock, id.

local clock = read_clock(KEYS[1], ARGV[1])
local deadline = string.format('%.0f', clock.now + tonumber(ARGV[3]))
for at = 4, #ARGV, 2 do
  -- Only what is there: one that was settled meanwhile must not come back.
  redis.call('ZADD', KEYS[tonumber(ARGV[at]) + 1], 'XX', deadline, ARGV[at + 1])
end
for number = 2, #KEYS do
  redis.call('PEXPIRE', KEYS[number], ARGV[2])
end
if clock.epoch then
  write_clock(KEYS[1], clock, ARGV[2])
end
return 1
