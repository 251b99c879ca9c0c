-- Writes labelled entries, up to the first prediction that has changed since it was read. One that closes and was never shown
-- has an entry without rows.
-- Arguments per prediction: id, version, 1 to close it, rows or empty, number of rows, time of the next look or empty.
-- Returns how many predictions were settled and how many entries were written.
local seen, written = 0, 0
for i = 1, #ARGV, 6 do
  local id, version, closing, rows, count, due = unpack(ARGV, i, i + 5)
  local key = 'traffic:p:' .. id
  local at = redis.call('HMGET', key, 'version', 'seq', 'ms', 'mature', 'entries', 'endpoint')
  if at[1] ~= version or not at[2] then break end
  seen = seen + 1
  redis.call('HINCRBY', key, 'version', 1)
  local revision = 0
  if closing == '1' then
    redis.call('HSET', key, 'revision', 0)
    redis.call('HINCRBY', 'traffic:counters', 'open', -1)
    redis.call('HSET', 'traffic:counters', 'watermark_ms', at[3])
    if at[6] then redis.call('HSET', 'traffic:counters', 'watermark_ms/' .. at[6], at[3]) end
    redis.call('XGROUP', 'SETID', 'traffic:predictions', 'join', at[2] .. '-0')
  elseif rows ~= '' then
    revision = redis.call('HINCRBY', key, 'revision', 1)
  end
  if due == '' then redis.call('ZREM', 'traffic:late', id) else redis.call('ZADD', 'traffic:late', due, id) end
  if rows ~= '' or (closing == '1' and due == '') then
    written = written + 1
    local seq = string.format('%d', redis.call('HINCRBY', 'traffic:counters', 'labelled_entries', 1))
    redis.call('HINCRBY', 'traffic:counters', 'labelled_rows', count)
    if at[6] then redis.call('HINCRBY', 'traffic:counters', 'labelled_rows/' .. at[6], count) end
    redis.call('XADD', 'traffic:labelled', seq .. '-0', 'i', id, 'r', revision, 'm', rows)
    redis.call('HSET', key, 'mature', (at[4] or '') .. struct.pack('<I4', #rows) .. rows)
    redis.call('HSET', key, 'entries', (at[5] and at[5] .. ' ' or '') .. seq)
  end
end
return {seen, written}
