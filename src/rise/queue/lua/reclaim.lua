-- Its process is dead: its claims lapse now.
local lanes = 0
even_when_full()
for _, lane in ipairs(call('ZRANGE', CLAIMS, 0, -1)) do
  local holder, _, channel = held_by(lane)
  if holder == ARGV[1] then
    local ends = tonumber(call('ZSCORE', CLAIMS, lane))
    if ends > now then
      set_ready(lane, channel, now)
      call('ZADD', CLAIMS, now, lane)
    end
    lanes = lanes + 1
  end
end
return lanes
