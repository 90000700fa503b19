-- Renews claims that nobody has taken over; answers with the fences of the others.
local lost = {}
even_when_full()
for i = 2, #ARGV, 2 do
  local holder, fence, channel = held_by(ARGV[i])
  if holder and fence == ARGV[i + 1] then renew(ARGV[i], channel, ARGV[1]) else lost[#lost + 1] = ARGV[i + 1] end
end
return lost
