-- The first pending tasks of a lane, in its order: behind a place, or from its beginning.
local lane, after, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
-- What follows a place in the line is since when, after a colon.
local from = after == '' and '-' or '(' .. after .. ';'
local rows = {}
while #rows < limit do
  -- One more than is asked for: one of the lane is being processed, mostly by whoever asks.
  local places = call('ZRANGEBYLEX', LINE .. lane, from, '+', 'LIMIT', 0, limit + 1)
  for _, place in ipairs(places) do
    local task = load(id_at(place))
    -- One that was deleted by hand and has been brought back stands where it is now, and has left a place behind.
    local is_meant = task and task.status == 'pending' and place_of(task) == place
    if is_meant and #rows < limit then rows[#rows + 1] = row_of(task) end
  end
  if #places <= limit then break end
  from = '(' .. places[#places]
end
return rows
