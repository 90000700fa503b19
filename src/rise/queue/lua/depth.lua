-- Everything counted, at one moment; nothing is walked but the channels.
local function score(key, ...)
  local first = call('ZRANGEBYSCORE', key, '-inf', ..., 'WITHSCORES', 'LIMIT', 0, 1)
  return first[2] and tonumber(first[2])
end

local oldest
for _, channel in ipairs(call('SMEMBERS', CHANNELS)) do
  local since = score(READY .. channel, now)
  if since and (not oldest or since < oldest) then oldest = since end
end
return {
  call('HGETALL', COUNTS), call('HGETALL', ROUTES), call('ZCOUNT', RETRY, '(' .. now, '+inf'), oldest or false,
  score(SUSPENDED, '+inf') or false, call('ZCOUNT', CLAIMS, '(' .. now, '+inf'), call('ZCARD', RECEIPT_KEYS),
}
