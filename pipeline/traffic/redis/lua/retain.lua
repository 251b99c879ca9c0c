-- Removes closed predictions that all readers have read.
-- Arguments: last labelled seq that may be removed, ids.
-- Returns how many predictions, feedback entries and labelled entries were removed, and how many predictions stay because
-- they are unread and unjoined.
local result = {0, 0, 0, 0, 0}
for i = 2, #ARGV do
  local at = redis.call('HMGET', 'traffic:p:' .. ARGV[i], 'seq', 'revision', 'entries')
  if not at[1] then
    -- gone already
  elseif not at[2] then
    result[5] = result[5] + 1
  elseif tonumber(string.match(at[3] or '0', '%d+$')) > tonumber(ARGV[1]) then
    result[4] = result[4] + 1
  else
    local fed, labelled = remove(ARGV[i])
    result[1] = result[1] + 1
    result[2] = result[2] + fed
    result[3] = result[3] + labelled
  end
end
return result
