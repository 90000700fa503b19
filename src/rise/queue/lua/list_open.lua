-- The meant ones among the next so many open tasks; and where to go on, false at the end.
local after, look, limit = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

-- Of one lane, the next of those that it has in line, or for a person, or both.
local function in_lane(lane, has_line, has_suspended)
  local ids = {}
  local function add(id)
    if id > after then ids[#ids + 1] = id end
  end
  if has_line then
    for _, place in ipairs(call('ZRANGE', LINE .. lane, 0, -1)) do add(id_at(place)) end
  end
  if has_suspended then
    for _, id in ipairs(call('SMEMBERS', SUSPENDED_IN .. lane)) do add(id) end
  end
  table.sort(ids)
  return { unpack(ids, 1, math.min(look, #ids)) }
end

-- What a chat has in line, or waiting for a person, is asked for on a message's way: never among all that is open.
local function candidates()
  local lane = selection.lane
  if lane and (selection.is_runnable or is_runnable(selection.status)) then return in_lane(lane, true, false) end
  -- What is said in a newer version's words may be in line there.
  if lane and selection.status == 'suspended' then return in_lane(lane, words, true) end
  return call('ZRANGEBYLEX', OPEN, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, look)
end

local found = candidates()
local rows = {}
for i, id in ipairs(found) do
  local task = meant(id)
  if task then rows[#rows + 1] = row_of(task) end
  if #rows == limit then return { id, rows } end
end
return { #found == look and found[#found], rows }
