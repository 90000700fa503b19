-- A process has earlier messages of these lanes and is about to bring them: nothing newer is handed out meanwhile. Also
-- when Redis is full, or the lanes would go on with what is newer; it ends by itself, should the process die.
local member, seconds = ARGV[1], tonumber(ARGV[2])
even_when_full()
for i = 3, #ARGV do
  local owed = OWED .. ARGV[i]
  call('ZADD', owed, now + seconds * 1000, member)
  if call('TTL', owed) < seconds then call('EXPIRE', owed, seconds) end
end
