-- All that is open was brought in this filling, unless what was brought first was lost again meanwhile.
local refill, life = ARGV[1], ARGV[2]

local known = call('GET', LIFE)
if known then return known end
if call('GET', REFILL) ~= refill then return false end
even_when_full()
call('SET', LIFE, life)
call('DEL', REFILL)
return life
