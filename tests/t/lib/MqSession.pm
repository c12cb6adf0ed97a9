# MqSession: a session with the server that can wait for a lock.
#
#   my $session = MqSession->new($node, 'db');
#   $session->query($sql)      what it returns, rows by lines; 'error SQLSTATE' if it fails
#   $session->start($sql)      returns when the query is over or waits for a lock
#   $session->begin($sql)      returns at once
#   $session->is_over          whether the query that was started has ended
#   $session->result           of the query that was started
#   $session->quit
package MqSession;

use strict;
use warnings;

use Time::HiRes qw(time usleep);

sub new {
	my ($class, $node, $database) = @_;
	my $psql = $node->background_psql($database, on_error_stop => 0);
	$psql->query('\set VERBOSITY sqlstate');
	my $pid = $psql->query('SELECT pg_backend_pid()');
	return bless { psql => $psql, node => $node, pid => $pid }, $class;
}

sub query {
	my ($self, $sql) = @_;
	$self->{psql}{stderr} = '';
	my $out = $self->{psql}->query($sql);
	return $self->{psql}{stderr} =~ /ERROR:  (\w{5})/ ? "error $1" : $out;
}

sub start {
	my ($self, $sql) = @_;
	$self->{psql}{stderr} = '';
	$self->{psql}{stdin} .= "$sql;\n\\echo query is over\n";
	my $end = time + 60;
	while (time < $end) {
		$self->{psql}{run}->pump_nb;
		return if $self->{psql}{stdout} =~ /query is over/;
		return if $self->{node}->safe_psql('postgres',
			"SELECT count(*) FROM pg_stat_activity WHERE pid = $self->{pid} AND wait_event_type = 'Lock'") eq '1';
		usleep(10_000);
	}
	die "neither over nor waiting: $sql";
}

sub begin {
	my ($self, $sql) = @_;
	$self->{psql}{stderr} = '';
	$self->{psql}{stdin} .= "$sql;\n\\echo query is over\n";
	$self->{psql}{run}->pump_nb;
}

sub is_over {
	my ($self) = @_;
	$self->{psql}{run}->pump_nb;
	return $self->{psql}{stdout} =~ /query is over/ ? 1 : 0;
}

sub result {
	my ($self) = @_;
	$self->{psql}{run}->pump until $self->{psql}{stdout} =~ /query is over\n/;
	# The error is on another pipe; it was written before.
	$self->{psql}{run}->pump_nb;
	my $out = $self->{psql}{stdout} =~ s/\n?query is over\n//r;
	$self->{psql}{stdout} = '';
	my $err = $self->{psql}{stderr};
	$self->{psql}{stderr} = '';
	return $err =~ /ERROR:  (\w{5})/ ? "error $1" : $out;
}

sub quit { my ($self) = @_; return $self->{psql}->quit }

1;
