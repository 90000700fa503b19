-- The lanes with most runnable tasks: how many, and for how long the first of them has been open. A few more than
-- asked for, so that among equals the longest-waiting can be chosen.
local longest, lanes = call('ZREVRANGE', WORK, 0, ARGV[1] - 1, 'WITHSCORES'), {}
for i = 1, #longest, 2 do
  local since = now
  for _, place in ipairs(call('ZRANGE', LINE .. longest[i], 0, -1)) do
    since = math.min(since, tonumber(place:match(':(%d+)$')))
  end
  lanes[#lanes + 1] = { longest[i], tonumber(longest[i + 1]), now - since }
end
return lanes
