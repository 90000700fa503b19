-- The meant ones among the next so many open tasks; and where to go on, false at the end.
local after, look, limit = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local FEW = 2000 -- are sorted within a millisecond or two, which is done anew for each page

local function next_of(ids)
  local behind, seen = {}, {}
  for _, id in ipairs(ids) do
    if id > after and not seen[id] then
      seen[id] = true
      behind[#behind + 1] = id
    end
  end
  table.sort(behind)
  return { unpack(behind, 1, math.min(look, #behind)) }
end

local function next_in(sorted)
  return call('ZRANGEBYLEX', sorted, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, look)
end

-- Of one lane, the next of those that it has in line, or for a person, or both.
local function in_lane(lane, has_line, has_suspended)
  local ids = has_suspended and call('SMEMBERS', SUSPENDED_IN .. lane) or {}
  if has_line then
    for _, place in ipairs(call('ZRANGE', LINE .. lane, 0, -1)) do ids[#ids + 1] = id_at(place) end
  end
  return next_of(ids)
end

-- Whether a newer version has said of some how far they are in words of its own, which it counts as all do.
local function has_newer()
  local counts = call('HGETALL', COUNTS)
  for i = 1, #counts, 2 do
    local status = counts[i]:match('^status:(.*)$')
    if status and not words.status[status] and counts[i + 1] ~= '0' then return true end
  end
  return false
end

local function waits_for(reason)
  for _, route in ipairs(call('HKEYS', ROUTES)) do
    if cjson.decode(route)[1] == reason then return true end
  end
  return false
end

-- What is looked for again and again, and is not there, must not cost what is open. nil: all that is open is gone
-- through.
local function in_suspended()
  if words and has_newer() then return nil end
  if selection.reason and not words and not waits_for(selection.reason) then return {} end
  if call('ZCARD', SUSPENDED) > FEW then return nil end
  return next_of(call('ZRANGE', SUSPENDED, 0, -1))
end

-- A former version that runs beside this one leaves out what it makes replying, and leaves in what it ends. The count
-- tells; then all that is open is gone through, and by that the set put right.
local function in_replying()
  local is_whole = call('ZCARD', REPLYING) == tonumber(call('HGET', COUNTS, 'status:replying') or 0)
  local ids = next_in(is_whole and REPLYING or OPEN)
  if not is_whole then
    even_when_full()
    call('ZREMRANGEBYLEX', REPLYING, after == '' and '-' or '(' .. after, #ids == look and '[' .. ids[look] or '+')
  end
  for _, id in ipairs(ids) do
    local is_replying = call('HGET', TASK .. id, 'status') == 'replying'
    if is_whole and not is_replying then
      call('ZREM', REPLYING, id)
    elseif is_replying and not is_whole then
      call('ZADD', REPLYING, 0, id)
    end
  end
  return ids
end

-- What a chat has in line, or waiting for a person, is asked for on a message's way: never among all that is open.
local function candidates()
  local lane = selection.lane
  if selection.task_ids and #selection.task_ids <= FEW then return next_of(selection.task_ids) end
  if lane and (selection.is_runnable or is_runnable(selection.status)) then return in_lane(lane, true, false) end
  -- What is said in a newer version's words may be in line there.
  if lane and selection.status == 'suspended' then return in_lane(lane, words, true) end
  if selection.status == 'replying' then return in_replying() end
  return selection.status == 'suspended' and in_suspended() or next_in(OPEN)
end

local found = candidates()
local rows = {}
for i, id in ipairs(found) do
  local task = meant(id)
  if task then rows[#rows + 1] = row_of(task) end
  if #rows == limit then return { id, rows } end
end
return { #found == look and found[#found], rows }
