-- What the suspended tasks of one lane wait for: reasons and routes, each once.
local seen, routes = {}, {}
for _, id in ipairs(call('SMEMBERS', SUSPENDED_IN .. ARGV[1])) do
  local task = load(id)
  -- Not what a newer version waits for in a way of its own: nobody here could resume it.
  local route = task and task.status == 'suspended' and route_of(task)
  if route and not seen[route] then
    seen[route] = true
    routes[#routes + 1] = route
  end
end
return routes
