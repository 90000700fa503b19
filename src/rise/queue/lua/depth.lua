-- Everything counted, at one moment; nothing is walked but the channels.

local function age_of_first(key, before)
  local first = call('ZRANGEBYSCORE', key, '-inf', before, 'WITHSCORES', 'LIMIT', 0, 1)
  return first[2] and now - first[2]
end

local counts, waiting = call('HGETALL', COUNTS), {}
for i = 1, #counts, 2 do
  local channel = counts[i]:match('^channel:(.*)$')
  local age = channel and age_of_first(READY .. channel, now)
  if age then
    waiting[#waiting + 1] = channel
    waiting[#waiting + 1] = age
  end
end
return {
  counts, call('HGETALL', ROUTES), call('ZCOUNT', RETRY, '(' .. now, '+inf'),
  call('ZCOUNT', PLANNED, '(' .. now, '+inf'), waiting,
  age_of_first(SUSPENDED, '+inf') or false, call('ZCOUNT', CLAIMS, '(' .. now, '+inf'), call('ZCARD', RECEIPT_KEYS),
}
