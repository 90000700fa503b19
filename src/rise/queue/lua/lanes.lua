-- Shared by all scripts of the queue. `now` is the store's time, ROW what a list shows of a task. What is here keeps
-- every index in step with the tasks: a task changes its status in `set_status` and nowhere else, a lane its place
-- among those that wait in `set_ready`. AWAITED is a help for `claim` and may be wrong.

local Q = '{rise}:queue:'
local TASK = Q .. 'task:'              -- hash of an open task: how far it is; small, and so packed by Redis
local CONTENT = Q .. 'content:'        -- hash of an open task: its head and the bytes received
local OPEN = Q .. 'open'               -- the ids of all of them, sorted
local LINE = Q .. 'line:'              -- per lane, its pending and processing tasks in the order in which they run
local WORK = Q .. 'work'               -- lanes that have such tasks, by their number
local RUNNING = Q .. 'running'         -- lane → its task being processed
local RETRY = Q .. 'retry'             -- pending tasks that failed and are not due yet, by when they are
local PLANNED = Q .. 'planned'         -- pending tasks that came to be run later, the same
local REPLYING = Q .. 'replying'       -- the ids of replying tasks, sorted; former versions keep none, see `list_open`
local SUSPENDED = Q .. 'suspended'     -- suspended tasks, by since when
local SUSPENDED_DATED = Q .. 'suspended:dated'  -- the same as "lane, newline, task", by their date
local SUSPENDED_IN = Q .. 'suspended:in:'      -- the same per lane
local DEADLINES = Q .. 'deadlines'     -- the same, by when they are of no use any more
local ROUTES = Q .. 'routes'           -- how many are suspended, by reason and route
local COUNTS = Q .. 'counts'           -- tasks by status and by channel, and what was counted since ever
local FINISHED = Q .. 'finished:'      -- tombstones: the generation of a task that is finished
local LANE = Q .. 'lane:'              -- hash of a lane: channel, holder, fence, the orders last seen and started
local READY = Q .. 'ready:'            -- per channel, since when its lanes wait to be claimed, or from when they may be
local AWAITED = Q .. 'awaited:'        -- the same of those lanes in which somebody waits for an answer; READY decides
local TURNS = Q .. 'turns:'            -- per channel, whose turn it is where there is not room for all
local DIED = Q .. 'died'               -- lanes in which a task was running when its worker died, until they are idle
local CLAIMS = Q .. 'claims'           -- lanes that somebody holds, by how long
local IDLE = Q .. 'idle'               -- lanes with nothing to do, by since when
local OWED = Q .. 'owed:'              -- per lane, who has earlier messages of it, and until when they may be brought
local OWED_LOOK_MS = 200               -- so soon a lane that is owed something is looked at again
local FENCE = Q .. 'fence'             -- the last one given out
local RECEIPTS = Q .. 'receipts'       -- delivery key → task, checksum of the body, when
local RECEIPT_KEYS = Q .. 'receipts:keys'
local RECEIPT_ENDS = Q .. 'receipts:ends'
local RECEIPT_AGAIN = Q .. 'receipts:again'  -- how often, for those that came more than once
local LIFE = '{rise}:life' -- names what is held here, once all of it is
local REFILL = '{rise}:refill' -- names the filling that is under way, until all is lost again
local HINTS = Q .. 'tasks'             -- the stream that wakes workers
local GROUP = 'workers'

local call = redis.call

-- A full Redis refuses what may need memory unless the script has written before. What ends or moves work must not
-- be refused, or it would stay full for ever; what brings work in must be.
local function even_when_full()
  call('DEL', Q .. 'nothing')
end

-- --- tasks ---

-- What is known of an open task, as strings; nil if it is not open.
local function load(id)
  local stored = call('HGETALL', TASK .. id)
  if #stored == 0 then return nil end
  local task = {}
  for i = 1, #stored, 2 do task[stored[i]] = stored[i + 1] end
  return task
end

-- That its delivery key is known, with the body that counts.
local function remember(key, task, body, received, ends)
  call('HSET', RECEIPTS, key, string.format('%s %s %s', task.id, body, received))
  call('ZADD', RECEIPT_KEYS, 0, key)
  call('ZADD', RECEIPT_ENDS, ends, key)
end

-- Of what is brought back: unless the key is known, or its time is over.
local function remember_again(key, task, body, received, ends)
  if ends > now and call('HEXISTS', RECEIPTS, key) == 0 then remember(key, task, body, received, ends) end
end

local function row_of(task, ...)
  local columns = {}
  for i, name in ipairs(ROW) do columns[i] = task[name] or false end
  for _, part in ipairs(call('HMGET', CONTENT .. task.id, 'head', ...)) do columns[#columns + 1] = part end
  return columns
end

local function whole(task)
  return row_of(task, 'raw')
end

-- Fields set to false are taken away.
local function change(task, fields)
  local set = {}
  for name, value in pairs(fields) do
    if value then
      set[#set + 1], set[#set + 2] = name, value
    elseif task[name] then
      call('HDEL', TASK .. task.id, name)
    end
    task[name] = value and tostring(value) or nil
  end
  if #set > 0 then call('HSET', TASK .. task.id, unpack(set)) end
end

local function count(name, by)
  call('HINCRBY', COUNTS, name, by)
end

local function is_runnable(status)
  return status == 'pending' or status == 'processing'
end

-- Where it stands in its lane, and since when.
local function place_of(task)
  return task.order .. task.id .. ':' .. task.accepted
end

local function id_at(place)
  return place:sub(33):match('^[^:]+')
end

local function count_line(lane)
  local tasks = call('ZCARD', LINE .. lane)
  if tasks > 0 then call('ZADD', WORK, tasks, lane) else call('ZREM', WORK, lane) end
end

local function route_of(task)
  return cjson.encode({ task.reason, task.channel, task.account, task.workflow })
end

local function count_route(task, by)
  local route = route_of(task)
  if call('HINCRBY', ROUTES, route, by) == 0 then call('HDEL', ROUTES, route) end
end

local enter = {
  pending = function(task)
    if tonumber(task.due) > now then call('ZADD', task.error and RETRY or PLANNED, task.due, task.id) end
  end,
  processing = function(task)
    call('HSET', RUNNING, task.lane, task.id)
  end,
  replying = function(task)
    call('ZADD', REPLYING, 0, task.id)
  end,
  suspended = function(task)
    call('ZADD', SUSPENDED, now, task.id)
    call('ZADD', SUSPENDED_DATED, task.at, task.lane .. '\n' .. task.id)
    call('SADD', SUSPENDED_IN .. task.lane, task.id)
    count_route(task, 1)
    -- A held reply was perhaps an answer in time: a person has to say what becomes of it.
    if task.deadline and task.reason ~= 'reply_held' then call('ZADD', DEADLINES, task.deadline, task.id) end
  end,
}

local leave = {
  pending = function(task)
    call('ZREM', RETRY, task.id)
    call('ZREM', PLANNED, task.id)
  end,
  processing = function(task)
    call('HDEL', RUNNING, task.lane)
  end,
  replying = function(task)
    call('ZREM', REPLYING, task.id)
  end,
  suspended = function(task)
    call('ZREM', SUSPENDED, task.id)
    call('ZREM', SUSPENDED_DATED, task.lane .. '\n' .. task.id)
    call('SREM', SUSPENDED_IN .. task.lane, task.id)
    call('ZREM', DEADLINES, task.id)
    count_route(task, -1)
  end,
}

-- A status of a newer version: what that keeps of it is not known here.
setmetatable(leave, { __index = function() return function() end end })

-- With what else changes. False as status: the task is not open any more.
local function set_status(task, status, fields)
  local was = task.status
  if was then
    leave[was](task)
    count('status:' .. was, -1)
  end
  task.status = nil
  if status then
    fields.status, fields.reason = status, fields.reason or false
    change(task, fields)
    enter[status](task)
    count('status:' .. status, 1)
  end
  if is_runnable(was) ~= is_runnable(status) then
    if is_runnable(status) then
      call('ZADD', LINE .. task.lane, 0, place_of(task))
    else
      call('ZREM', LINE .. task.lane, place_of(task))
    end
    count_line(task.lane)
  end
end

local function suspend(task, reason, error)
  set_status(task, 'suspended', { reason = reason, error = error or false, updated = now })
end

-- What names a task that comes, from the arguments.
local function named(first)
  local task = {}
  for i, name in ipairs({ 'id', 'lane', 'channel', 'account', 'workflow', 'order', 'at', 'unawaited' }) do
    task[name] = ARGV[first + i - 1]
  end
  task.unawaited = task.unawaited ~= '' and task.unawaited
  return task
end

-- `known`: its name and what else is known of it.
local function create(known, head, raw, status)
  known.attempts, known.deaths, known.accepted, known.updated = 0, 0, now, now
  call('HSET', CONTENT .. known.id, 'head', head, 'raw', raw)
  call('ZADD', OPEN, 0, known.id)
  count('channel:' .. known.channel, 1)
  set_status({ id = known.id }, status, known)
  -- Of the former generation, or the former message of its key: it would keep this one out, were it lost. Last, because
  -- a full Redis refuses the first write.
  call('DEL', FINISHED .. known.id)
end

local function forget(task)
  set_status(task, false, {})
  call('DEL', TASK .. task.id, CONTENT .. task.id)
  call('ZREM', OPEN, task.id)
  count('channel:' .. task.channel, -1)
end

-- The task is over: whoever brings it again from another copy is told so for a while.
local function bury(task, tombstone_ms)
  forget(task)
  call('SET', FINISHED .. task.id, task.generation, 'PX', tombstone_ms)
end

-- --- lanes ---

local function drop_hint(lane)
  local hint = call('HGET', LANE .. lane, 'hint')
  if hint then
    call('XACK', HINTS, GROUP, hint)
    call('XDEL', HINTS, hint)
    call('HDEL', LANE .. lane, 'hint')
  end
end

-- When the lane may next be claimed; nil: as far as is known, nothing is to be done in it. One that waits has one
-- hint in the stream, any other none, so that the stream is never longer than what waits.
local function set_ready(lane, channel, at)
  if at then
    call('ZADD', READY .. channel, at, lane)
    call('ZADD', AWAITED .. channel, 'XX', at, lane)
    call('ZREM', IDLE, lane)
  else
    call('ZREM', READY .. channel, lane)
    call('ZREM', AWAITED .. channel, lane)
    call('ZADD', IDLE, now, lane)
  end
  if not at or at > now then
    drop_hint(lane)
  elseif call('HEXISTS', LANE .. lane, 'hint') == 0 then
    call('HSET', LANE .. lane, 'channel', channel, 'hint', call('XADD', HINTS, '*', 'lane', lane))
  end
end

local function held_by(lane)
  local known = call('HMGET', LANE .. lane, 'holder', 'fence', 'channel')
  return known[1], known[2], known[3]
end

-- Its lane has something to do from that moment on. If it waits already it keeps its place.
local function announce(task, from)
  local lane, channel = task.lane, task.channel
  local at = tonumber(call('ZSCORE', READY .. channel, lane))
  if not at or (at > from and not held_by(lane)) then
    at = from
    set_ready(lane, channel, at)
  end
  if not task.unawaited then call('ZADD', AWAITED .. channel, at, lane) end
  if tonumber(task.deaths) > 0 then call('SADD', DIED, lane) end
end

local function free(lane)
  call('HDEL', LANE .. lane, 'holder')
  call('ZREM', CLAIMS, lane)
end

-- The first task in the line of a lane, or nil.
local function first_task(lane)
  while true do
    local place = call('ZRANGE', LINE .. lane, 0, 0)[1]
    if not place then return nil end
    local task = load(id_at(place))
    if task then return task end
    -- Somebody deleted it by hand. That it is missed is said by the audit; its lane goes on.
    call('ZREM', LINE .. lane, place)
    count_line(lane)
  end
end

local function is_owed(lane)
  return call('ZCOUNT', OWED .. lane, '(' .. now, '+inf') > 0
end

local function let_go(lane, channel)
  free(lane)
  local first = first_task(lane)
  local at = first and math.max(tonumber(first.due), now)
  if at and is_owed(lane) then at = math.max(at, now + OWED_LOOK_MS) end
  set_ready(lane, channel, at)
end

-- Grows with every claim ever given out, also over the loss of what was written last, because time went on.
local function next_fence()
  local fence = string.format('%.0f', math.max(tonumber(call('GET', FENCE) or 0) + 1, now * 1000))
  call('SET', FENCE, fence)
  return fence
end

local function latest(lane, name, order)
  local known = call('HGET', LANE .. lane, name)
  if not known or known < order then call('HSET', LANE .. lane, name, order) end
end

local function renew(lane, channel, claim_ms)
  set_ready(lane, channel, now + claim_ms)
  call('ZADD', CLAIMS, now + claim_ms, lane)
end

local function run(task, claim_ms)
  latest(task.lane, 'started', task.order)
  latest(task.lane, 'newest', task.order)
  renew(task.lane, task.channel, claim_ms)
  local was_begun = task.begun
  set_status(task, 'processing', { updated = now, begun = 1 })
  task.begun = was_begun -- what is said is how it was before
  local row = whole(task)
  row[#row + 1] = call('EXISTS', SUSPENDED_IN .. task.lane)
  return row
end
