-- The meant ones among the next so many open tasks; and where to go on, false at the end.
local after, look, limit = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local function in_line(lane)
  local ids, found = {}, {}
  for _, place in ipairs(call('ZRANGE', LINE .. lane, 0, -1)) do
    local id = id_at(place)
    if id > after then ids[#ids + 1] = id end
  end
  table.sort(ids)
  for i = 1, math.min(look, #ids) do found[i] = ids[i] end
  return found
end

-- What a chat has in line is asked for on a message's way: never among all that is open.
local is_in_line = selection.lane and is_runnable(selection.status)
local found = is_in_line and in_line(selection.lane)
  or call('ZRANGEBYLEX', OPEN, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, look)
local rows = {}
for i, id in ipairs(found) do
  local task = meant(id)
  if task then rows[#rows + 1] = row_of(task) end
  if #rows == limit then return { id, rows } end
end
return { #found == look and found[#found], rows }
