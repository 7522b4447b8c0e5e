# While both programs work, plain: who talks to whom, how much and how; then what to do about it.
sudo tssx-trace discover --duration $WATCH --record seen.json
tssx-trace suggest --from seen.json > tssx.env
# Start both again in shells that have read that, and have it proven.
set -a; . ./tssx.env; set +a
sudo tssx-trace verify --duration $WATCH --min-hit-rate 0.99 --expect $SOCKET $SOCKET

# redis
redis-server --port 0 --save "" --unixsocket $SOCKET
redis-benchmark -s $SOCKET -t get -c $CLIENTS -n $MANY

# PostgreSQL
postgres -D data -c listen_addresses= -c unix_socket_directories=$PWD
pgbench -h $PWD -n -S -M prepared -c $CLIENTS -t $MANY postgres

# memcached, and a program that keeps its connection
memcached -s $SOCKET
python3 memcached_client.py $SOCKET $MANY

# nginx, and php-fpm behind it. Connections are worth it if they are kept, which nginx.conf must say:
#   upstream php { server unix:$SOCKET; keepalive 8; keepalive_requests 1000000; }
#   location ~ \.php$ { fastcgi_pass php; fastcgi_keep_conn on; include fastcgi_params; }
php-fpm --nodaemonize --fpm-config php-fpm.conf
nginx -p . -e nginx.log -c nginx.conf
