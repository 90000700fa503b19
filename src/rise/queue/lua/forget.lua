-- Receipts whose time is over, lanes idle for long, and hints that somebody read and nobody followed; each so many
-- at once, because messages are accepted in between. Answers whether there may be more.
local at_once, lane_memory_ms, hint_ms, sweeper = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]

local keys = call('ZRANGEBYSCORE', RECEIPT_ENDS, '-inf', '(' .. now, 'LIMIT', 0, at_once)
if #keys > 0 then
  call('HDEL', RECEIPTS, unpack(keys))
  call('HDEL', RECEIPT_AGAIN, unpack(keys))
  call('ZREM', RECEIPT_KEYS, unpack(keys))
  call('ZREM', RECEIPT_ENDS, unpack(keys))
end

local lanes = call('ZRANGEBYSCORE', IDLE, '-inf', '(' .. (now - lane_memory_ms), 'LIMIT', 0, at_once)
for _, lane in ipairs(lanes) do
  call('DEL', LANE .. lane)
  call('ZREM', IDLE, lane)
end

-- Their lanes wait all the same, and are found by whoever looks.
local hints = redis.pcall('XAUTOCLAIM', HINTS, GROUP, sweeper, hint_ms, '0-0', 'COUNT', 100, 'JUSTID')
if not hints.err then
  for _, hint in ipairs(hints[2]) do
    call('XACK', HINTS, GROUP, hint)
    call('XDEL', HINTS, hint)
  end
end
return (#keys == at_once or #lanes == at_once) and 1 or 0
