-- Opens the log, and creates it in an empty database.
-- Arguments: format.
-- Returns the format found or made, or `foreign` if the database holds other keys.
local found = redis.call('GET', 'traffic:format')
if found then return found end
if redis.call('DBSIZE') > 0 then return 'foreign' end
redis.call('SET', 'traffic:format', ARGV[1])
redis.call('XGROUP', 'CREATE', 'traffic:predictions', 'join', '0', 'MKSTREAM')
redis.call('XADD', 'traffic:labelled', '0-1', 'i', '')
redis.call('XDEL', 'traffic:labelled', '0-1')
return ARGV[1]
