-- Which open tasks are meant, for the scripts that list and resume. Fields that are not there do not narrow.
local NARROWING = { 'status', 'reason', 'channel', 'account', 'lane' }
local selection = cjson.decode(ARGV[1])

local function set_of(values)
  if not values then return nil end
  local set = {}
  for _, value in ipairs(values) do set[value] = true end
  return set
end

local function route_key(channel, account, workflow)
  return cjson.encode({ channel, account, workflow })
end

local ids, routes = set_of(selection.task_ids), nil
if selection.routes then
  routes = {}
  for _, route in ipairs(selection.routes) do routes[route_key(unpack(route))] = true end
end

-- The words that are known, where what a newer version says in its own is meant, too.
local words = selection.words and { status = set_of(selection.words.status), reason = set_of(selection.words.reason) }

local function is_newer(task)
  return words and not (words.status[task.status] and (not task.reason or words.reason[task.reason]))
end

-- The task of an id if it is meant.
local function meant(id)
  if ids and not ids[id] then return nil end
  -- Looked for every few seconds, among all that is open: one field tells of most that they are not meant.
  local before = selection.older_than_ms
  if before and tonumber(call('HGET', TASK .. id, 'accepted') or 0) >= before then return nil end
  local task = load(id)
  if not task then return nil end
  if selection.is_runnable and not is_runnable(task.status) then return nil end
  for _, name in ipairs(is_newer(task) and { 'channel', 'account', 'lane' } or NARROWING) do
    if selection[name] and selection[name] ~= task[name] then return nil end
  end
  if routes and not routes[route_key(task.channel, task.account, task.workflow)] then return nil end
  return task
end

-- The meant tasks among the suspended, by whole lanes, oldest first, until there are about `limit`.
local function meant_suspended(limit)
  local tasks, seen, from, page = {}, {}, 0, 200
  local function add_lane(lane)
    for _, id in ipairs(call('SMEMBERS', SUSPENDED_IN .. lane)) do tasks[#tasks + 1] = meant(id) end
  end
  if selection.lane then
    if limit > 0 then add_lane(selection.lane) end
    return tasks
  end
  while #tasks < limit do
    local members = call('ZRANGE', SUSPENDED_DATED, from, from + page - 1)
    for _, member in ipairs(members) do
      local lane, id = member:match('^(.*)\n(.-)$')
      if #tasks < limit and not seen[lane] and meant(id) then
        seen[lane] = true
        add_lane(lane)
      end
    end
    if #members < page then break end
    from = from + page
  end
  return tasks
end
