# MqDocuments: reads the documents of the project for tests/t/018_documents.pl.
#
#   documents()                    the paths of all documents, below the root of the checkout
#   document($path)                the text of one
#   blocks($text, 'sql')           what stands in its fenced blocks of that language
#   examples($block)               the statements of such a block: pairs of the SQL and what it returns, undef if it says nothing
#   sections($text)                the text under each heading, by the heading
#   tables($text)                  its tables, each a list of rows, each a list of cells
#   anchors($text)                 the anchors of its headings, as on the pages of GitHub
#   links($text)                   the targets of its relative links
package MqDocuments;

use strict;
use warnings;
use Exporter 'import';
use File::Find;
use FindBin;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(documents document blocks examples sections tables anchors links $ROOT);

our $ROOT = "$FindBin::RealBin/../..";

sub documents {
	my @found;
	find({ no_chdir => 1, wanted => sub { push @found, $File::Find::name =~ s{^\Q$ROOT\E/}{}r if /\.md$/ } }, "$ROOT/docs");
	return (map { s{^\Q$ROOT\E/}{}r } glob("$ROOT/*.md")), sort @found;
}

sub document {
	return slurp_file("$ROOT/$_[0]");
}

sub blocks {
	my ($text, $language) = @_;
	return $text =~ /^```\Q$language\E\n(.*?)^```$/msg;
}

# A statement ends with a line that ends with a semicolon, or with one and a comment, outside of dollar quotes and of BEGIN …
# COMMIT. '-- => …' behind it, or in lines of their own below it, is what it returns.
sub examples {
	my ($block) = @_;
	my (@examples, $statement);
	for my $line (split /\n/, $block) {
		if (!$statement && $line =~ /^-- => (.*)$/) {
			die "nothing returns: $line" unless @examples;
			$examples[-1][1] = defined $examples[-1][1] ? "$examples[-1][1]\n$1" : $1;
			next;
		}
		$statement .= "$line\n";
		next if (() = $statement =~ /\$\$/g) % 2 || $statement =~ /^BEGIN;(?!.*^(COMMIT|ROLLBACK);)/ms || $line !~ /;\s*(--.*)?$/;
		die "inside of a transaction block: $1" if $statement =~ /^BEGIN;.*^(.*-- => .*)$/ms;
		push @examples, [ $statement =~ /^(.*;)\s*-- => ([^\n]*)\n$/s ? ($1, $2) : ($statement, undef) ];
		$statement = '';
	}
	die "no end of: $statement" if $statement;
	return @examples;
}

sub without_blocks {
	return $_[0] =~ s/^```.*?^```$//msgr;
}

sub sections {
	my ($text) = @_;
	my (undef, @parts) = split /^#+ (.*)$/m, without_blocks($text);
	return @parts;
}

sub tables {
	my ($text) = @_;
	my (@tables, $open);
	for my $line (split /\n/, without_blocks($text)) {
		if ($line !~ /^\|/) { $open = 0; next; }
		next if $line =~ /^\|[-:| ]+$/ && $line =~ /-/;
		push @tables, [] unless $open;
		$open = 1;
		$line =~ s/^\|\s*|\s*\|\s*$//g;
		push @{ $tables[-1] }, [ map { s/\\\|/|/gr } split /\s*(?<!\\)\|\s*/, $line, -1 ];
	}
	return @tables;
}

sub anchors {
	my ($text) = @_;
	my (%seen, @anchors);
	for my $heading (without_blocks($text) =~ /^#+ (.*)$/mg) {
		$heading =~ s/\[([^\]]*)\]\([^)]*\)/$1/g;
		my $anchor = lc($heading) =~ s/[^\w\- ]//gr =~ s/ /-/gr;
		push @anchors, $seen{$anchor}++ ? "$anchor-" . ($seen{$anchor} - 1) : $anchor;
	}
	return @anchors;
}

sub links {
	my ($text) = @_;
	return grep { !/^[a-z]+:/ } without_blocks($text) =~ /\]\(([^)\s]+)\)/g;
}

1;
