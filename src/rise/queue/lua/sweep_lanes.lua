-- Some of the lanes that have work, from a cursor on: those that nothing says it of are made claimable.
-- In steps, because messages are accepted in between.
local found = 0
local page = call('ZSCAN', WORK, ARGV[1], 'COUNT', ARGV[2])
for i = 1, #page[2], 2 do
  local lane = page[2][i]
  local channel = call('HGET', LANE .. lane, 'channel')
  if not channel or not call('ZSCORE', READY .. channel, lane) then
    local first = first_task(lane)
    if first and not call('ZSCORE', READY .. first.channel, lane) then
      announce(first, now)
      found = found + 1
    end
  end
end
return { page[1], found }
